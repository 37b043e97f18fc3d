"""What is written is whole or not there; what others wrote cannot run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from each import each
from homolog.backbones import build
from homolog.backbones.base import Backbone
from homolog.errors import JobError, UnusableInput
from homolog.features.embed import load_embedder
from homolog.model_files.encoder import encoder_id, load_encoder
from homolog.model_files.folder import (
    find_model,
    generations,
    load_best,
    load_model,
    load_state,
    save_best,
    save_model,
    save_state,
)
from homolog.model_files.foreign import read_foreign
from homolog.writing import beside, writing_folder

SMALL = {"channels": [4, 8], "blocks": 1}


def state(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(64, 64, generator=generator),
        "count": torch.tensor(step),
        "seen": torch.tensor([True, False]),
        "half": torch.randn(3, generator=generator).bfloat16(),
    }


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def small_encoder(seed: int = 0, in_channels: int = 1) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build("resunet", {**SMALL, "in_channels": in_channels})


def saved_encoder(folder: Path) -> Backbone:
    encoder = small_encoder()
    card = {
        "kind": "encoder",
        "backbone": {"name": "resunet", "config": SMALL},
        "embedding": {"maps": {"features": 1}, "heads": []},
    }
    save_model(folder, encoder.state_dict(), card)
    return encoder


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[n]) for n, x in a.state_dict().items())


# --- generations of a training


def test_a_generation_comes_back_exactly(tmp_path: Path) -> None:
    info = {"rate": 0.1 + 0.2, "losses": {"a": 1e-300}}
    path = save_state(tmp_path, 12, state(12), info)
    back = load_state(tmp_path)
    assert back is not None
    assert (back.step, back.path, back.damaged, back.info) == (12, path, (), info)
    assert all(torch.equal(t, back.tensors[n]) for n, t in state(12).items())
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    assert load_best(tmp_path) is None


def test_two_generations_are_kept(tmp_path: Path) -> None:
    for step in (5, 100, 20000):
        save_state(tmp_path, step, state(step), {})
    assert [p.name for p in generations(tmp_path)] == ["step_00020000", "step_00000100"]


@each("harm", ["flip", "truncate", "no tensors", "no info", "torn info", "swap"])
def test_a_damaged_newest_generation_falls_back(tmp_path: Path, harm: str) -> None:
    older = save_state(tmp_path, 1, state(1), {})
    newest = save_state(tmp_path, 2, state(2), {})
    tensors, info = newest / "state.safetensors", newest / "state.json"
    content = tensors.read_bytes()
    if harm == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "truncate":
        tensors.write_bytes(content[: len(content) // 2])
    elif harm == "no tensors":
        tensors.unlink()
    elif harm == "no info":
        info.unlink()
    elif harm == "torn info":
        info.write_text(info.read_text()[:20])
    else:
        tensors.write_bytes((older / "state.safetensors").read_bytes())
    back = load_state(tmp_path)
    assert back is not None
    assert back.step == 1
    assert len(back.damaged) == 1
    assert newest.name in back.damaged[0]


def test_no_sound_generation_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    (save_state(tmp_path, 1, state(1), {}) / "state.json").write_text("{}")
    with pytest.raises(JobError, match="no sound checkpoint"):
        load_state(tmp_path)


def test_a_full_disk_leaves_the_last_good_generation(tmp_path: Path) -> None:
    save_state(tmp_path, 1, state(1), {})
    with full_disk(4096), pytest.raises(JobError, match="step_00000001 stays") as told:
        save_state(tmp_path, 2, state(2), {})
    assert "could not be saved" in str(told.value)
    back = load_state(tmp_path)
    assert back is not None
    assert (back.step, back.damaged) == (1, ())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    save_state(tmp_path, 2, state(2), {})  # space again


def test_a_full_disk_before_the_first_generation_says_so(tmp_path: Path) -> None:
    with full_disk(4096), pytest.raises(JobError, match="none was saved yet"):
        save_state(tmp_path, 2, state(2), {})
    assert load_state(tmp_path) is None


def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.write_text("a file where the folder should be")
    with pytest.raises(JobError, match="could not be saved"):
        save_state(place, 1, state(1), {})


def test_what_a_killed_save_left_is_never_taken_for_a_generation(
    tmp_path: Path,
) -> None:
    save_state(tmp_path, 1, state(1), {})
    former = tmp_path / "checkpoints" / ".step_00000002.new"
    half = beside(tmp_path / "checkpoints" / "step_00000002")
    for folder in (former, half):
        folder.mkdir()
        (folder / "state.safetensors").write_bytes(b"half")
    back = load_state(tmp_path)
    assert back is not None
    assert back.step == 1
    save_state(tmp_path, 2, state(2), {})
    assert not former.exists()
    assert [p.name for p in generations(tmp_path)] == ["step_00000002", "step_00000001"]


def test_a_replaced_folder_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    place = tmp_path / "best"
    with writing_folder(place) as scratch:
        (scratch / "a").write_text("1")

    def fail() -> None:
        with writing_folder(place) as scratch:
            (scratch / "a").write_text("2")
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert (place / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_the_best_weights_are_replaced_whole_and_checked(tmp_path: Path) -> None:
    save_best(tmp_path, state(1), {"score": 1})
    save_best(tmp_path, state(2), {"score": 2})
    found = load_best(tmp_path)
    assert found is not None
    assert found[1] == {"score": 2}
    assert torch.equal(found[0]["weight"], state(2)["weight"])
    (tmp_path / "best" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(JobError, match="damaged"):
        load_best(tmp_path)


# --- model folders


def test_an_encoder_comes_back_from_run_folder_and_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    encoder = saved_encoder(run / "model")
    for source in (run, run / "model", run / "model" / "encoder.safetensors"):
        loaded = load_encoder(source)
        assert equal(loaded.backbone, encoder)
        assert loaded.report.share == 1.0
        assert loaded.report.missing == loaded.report.unexpected == ()
        assert loaded.encoder_id == encoder_id(encoder)
        assert not loaded.backbone.training
        assert loaded.folder == run / "model"


def test_the_id_changes_with_any_weight_and_any_setting() -> None:
    first = small_encoder()
    ids = {encoder_id(first), encoder_id(small_encoder(1))}
    with torch.no_grad():
        next(iter(first.parameters())).view(-1)[0] += 1e-6
    ids |= {encoder_id(first), encoder_id(build("resunet", {"channels": [4, 8, 16]}))}
    assert len(ids) == 4


def test_a_model_can_be_read_without_our_code(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    encoder = saved_encoder(tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    weights = load_file(tmp_path / "model" / card["weights"])
    assert set(weights) == set(encoder.state_dict())


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    saved_encoder(tmp_path)
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(UnusableInput, match="does not match its checksum"):
        load_encoder(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(UnusableInput, match=r"model\.json is damaged"):
        load_model(tmp_path)


def test_a_place_without_a_model_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="none"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(UnusableInput, match=r"has no model\.json"):
        find_model(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UnusableInput, match="no model yet"):
        find_model(tmp_path)


def test_a_full_disk_keeps_the_former_model(tmp_path: Path) -> None:
    encoder = saved_encoder(tmp_path / "model")
    other = small_encoder(3)
    with full_disk(4096), pytest.raises(JobError, match="could not be saved"):
        save_model(tmp_path / "model", other.state_dict(), {"backbone": {}})
    assert equal(load_encoder(tmp_path / "model").backbone, encoder)


# --- other people's files


@each(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "encoder.",
        "student.backbone.",
        "model.module.net.x.",
    ],
)
@each("nest", [(), ("state_dict",), ("model", "weights")])
def test_names_are_found_below_any_prefix(
    tmp_path: Path, prefix: str, nest: tuple[str, ...]
) -> None:
    encoder = small_encoder(4)
    content: Any = {f"{prefix}{n}": t for n, t in encoder.state_dict().items()}
    content[f"{prefix}head.weight"] = torch.ones(3)
    for name in nest:
        content = {name: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    loaded = load_encoder(tmp_path / "w.pt", {"name": "resunet", "config": SMALL})
    assert equal(loaded.backbone, encoder)
    assert loaded.report.unexpected == ("head.weight",)
    assert "matched" in "\n".join(loaded.report.lines())


def test_of_student_and_teacher_the_teacher_is_taken(tmp_path: Path) -> None:
    student, teacher = small_encoder(1), small_encoder(2)
    content = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    torch.save(content, tmp_path / "w.pt")
    loaded = load_encoder(tmp_path / "w.pt", {"name": "resunet", "config": SMALL})
    assert equal(loaded.backbone, teacher)
    assert loaded.report.prefix == "teacher."


def test_too_little_of_the_encoder_is_refused_with_the_table(tmp_path: Path) -> None:
    content = dict(list(small_encoder().state_dict().items())[:2])
    torch.save({"state_dict": content, "x": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(UnusableInput, match="at least 90% is needed") as told:
        load_encoder(tmp_path / "w.pt", {"name": "resunet", "config": SMALL})
    assert "missing" in str(told.value)
    loaded = load_encoder(
        tmp_path / "w.pt", {"name": "resunet", "config": SMALL}, least_matched=0.0
    )
    assert len(loaded.report.matched) == 2


def test_another_shape_counts_as_not_matched(tmp_path: Path) -> None:
    content = small_encoder().state_dict()
    name = max(content, key=lambda n: content[n].numel())
    content[name] = torch.ones(5, 5, 3, 3, 3)
    torch.save(content, tmp_path / "w.pt")
    hint = {"name": "resunet", "config": SMALL}
    file = tmp_path / "w.pt"
    with pytest.raises(UnusableInput, match=f"1 of other shapes .first {name}"):
        load_encoder(file, hint, least_matched=0.0)
    loaded = load_encoder(file, hint, least_matched=0.0, allow_dropped=True)
    assert [entry[0] for entry in loaded.report.misshaped] == [name]
    assert loaded.report.share < 1.0


def test_image_channels_are_adapted(tmp_path: Path) -> None:
    encoder = saved_encoder(tmp_path)
    loaded = load_encoder(tmp_path, in_channels=3)
    assert loaded.report.share == 1.0
    assert loaded.card["backbone"]["config"]["in_channels"] == 3
    image = torch.randn(1, 1, 8, 8, 8)
    ours = loaded.backbone(image.expand(1, 3, 8, 8, 8))
    torch.testing.assert_close(
        ours[-1], encoder.eval()(image)[-1], atol=1e-5, rtol=1e-4
    )


def test_a_larger_encoder_than_the_one_named_is_not_cut(tmp_path: Path) -> None:
    larger = build("resunet", {"channels": [4, 8, 16], "blocks": 1}).state_dict()
    larger |= {"decoder.0.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}
    torch.save(larger, tmp_path / "w.pt")
    hint = {"name": "resunet", "config": SMALL}
    with pytest.raises(UnusableInput, match=r"would lose .* tensors of the encoder"):
        load_encoder(tmp_path / "w.pt", hint)
    loaded = load_encoder(tmp_path / "w.pt", hint, allow_dropped=True)
    assert set(loaded.report.unexpected) - set(loaded.report.left_over) == {
        "decoder.0.weight", "fc.bias",
    }  # fmt: skip
    assert "left over" in "\n".join(loaded.report.lines())


def test_image_channels_are_not_added_up_unasked(tmp_path: Path) -> None:
    torch.save(small_encoder(in_channels=4).state_dict(), tmp_path / "w.pt")
    hint = {"name": "resunet", "config": SMALL}
    with pytest.raises(UnusableInput, match=r"its 4 image channels apart .*into 1"):
        load_encoder(tmp_path / "w.pt", hint, in_channels=1)
    assert load_encoder(tmp_path / "w.pt", hint).report.summed == ()
    taken = load_encoder(tmp_path / "w.pt", hint, in_channels=1, allow_dropped=True)
    assert taken.report.summed
    # a colour picture's channels are: a grey picture looks the same to the sum
    colour = build("resnet2d", {"in_channels": 3, "widths": [8, 8, 8, 8]})
    torch.save(colour.state_dict(), tmp_path / "rgb.pt")
    two = {"name": "resnet2d", "config": {"widths": [8, 8, 8, 8]}}
    report = load_encoder(tmp_path / "rgb.pt", two).report
    assert (len(report.summed), report.dropped) == (1, "")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_never_taken(
    tmp_path: Path, value: float
) -> None:
    encoder = small_encoder()
    content = encoder.state_dict()
    name = next(n for n, t in content.items() if t.ndim > 1)
    content[name].view(-1)[3] = value
    torch.save(content, tmp_path / "w.pt")
    hint = {"name": "resunet", "config": SMALL}
    card = {"kind": "encoder", "backbone": hint}
    save_model(tmp_path / "own", content, card)
    for source in (tmp_path / "w.pt", tmp_path / "own"):
        with pytest.raises(UnusableInput, match=f"NaN or infinite.*first {name}"):
            load_encoder(source, hint, allow_dropped=True)


def test_a_foreign_file_needs_the_name_of_its_network(tmp_path: Path) -> None:
    names = {f"n{i}": v for i, v in enumerate(small_encoder().state_dict().values())}
    torch.save(names, tmp_path / "w.pt")
    with pytest.raises(UnusableInput, match="name the backbone"):
        load_encoder(tmp_path / "w.pt")


def test_what_training_scripts_leave_behind_is_harmless(tmp_path: Path) -> None:
    content = {
        "state_dict": {"a": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(x=[1])),
        "best": np.float64(0.5),
        "epoch": np.int64(3),
        "scores": np.zeros(3),
        "path": tmp_path,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{}]},
    }
    for new in (True, False):
        torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
        found = read_foreign(tmp_path / "w.pt").tensors
        assert list(found) == ["state_dict.a"]


class Runs:
    """Runs a command when unpickled, if anything lets it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def unsafe_pickles(mark: str) -> list[Any]:
    return [
        Runs(os.system, f"touch {mark}"),
        Runs(eval, f"open({mark!r}, 'w')"),
        Runs(exec, f"open({mark!r}, 'w')"),
        Runs(subprocess.Popen, ["touch", mark]),
        Runs(open, mark, "w"),
        Runs(getattr, "os", "system"),
        Runs(__import__, "os"),
        Runs(pickle.loads, pickle.dumps(Runs(os.system, f"touch {mark}"))),
        Runs(torch.load, mark),
        Runs(np.load, mark),
    ]


@each("index", range(10))
@each("kind", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, index: int, kind: str) -> None:
    mark = tmp_path / "it_ran"
    content = {
        "state_dict": {"a": torch.ones(1)},
        "x": unsafe_pickles(str(mark))[index],
    }
    file = tmp_path / "w.pt"
    if kind == "bare":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UnusableInput, match=r"refused: it wants|damaged or something"):
        read_foreign(file)
    assert not mark.exists()


@pytest.mark.parametrize("entry", ["../evil", "/abs", "w/data.pkl"])
def test_archive_tricks_are_refused(tmp_path: Path, entry: str) -> None:
    file = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1)}, file)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        archive.writestr(entry, b"x")
    with pytest.raises(UnusableInput, match="not a plain torch file"):
        read_foreign(file)


def test_an_archive_bomb_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1)}, file)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data/9", b"\0" * 50_000_000)
    with pytest.raises(UnusableInput, match="would unpack"):
        read_foreign(file)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_and_empty_files_are_told(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with pytest.raises(UnusableInput, match="there is none"):
        read_foreign(file)
    for content in (b"", b"hello world" * 9, b"PK\x03\x04" + b"\0" * 90):
        file.write_bytes(content)
        with pytest.raises(UnusableInput, match="damaged or something"):
            read_foreign(file)


def test_a_file_without_tensors_is_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(UnusableInput, match="found no tensor"):
        read_foreign(tmp_path / "w.pt")


def test_an_embedder_without_heads_is_the_cards_map(tmp_path: Path) -> None:
    saved_encoder(tmp_path)
    embedder = load_embedder(load_encoder(tmp_path))
    found = embedder(torch.randn(1, 1, 8, 8, 8))
    assert list(found) == ["features"]
    assert found["features"].shape == (1, 8, 2, 2, 2)


class _Calls:
    """Pickled, asks for a function to be called."""

    def __init__(self, function: object, *given: object) -> None:
        self.call = (function, given)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_unpack_to_more_than_their_file_are_refused(
    tmp_path: Path, zipped: bool
) -> None:
    file = tmp_path / "w.pt"
    how = {"_use_new_zipfile_serialization": zipped}
    one = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    torch.save({"w": one}, file, **how)
    with pytest.raises(UnusableInput, match="would unpack to 4000000000000 bytes"):
        read_foreign(file)
    torch.save({"w": torch.ones(2), "b": _Calls(bytearray, 10**10)}, file, **how)
    with pytest.raises(UnusableInput, match="it wants memory by a number"):
        read_foreign(file)
    shared = torch.ones(1000)
    torch.save({str(i): shared for i in range(40)}, file, **how)
    assert len(read_foreign(file).tensors) == 40  # tied weights are usual


def test_dictionaries_that_hold_each_other_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homolog.model_files.foreign._MOST_ENTRIES", 5000)
    inner: dict[str, object] = {str(i): 0 for i in range(100)}
    outer: dict[str, object] = {str(i): inner for i in range(100)}
    torch.save({"w": torch.ones(2), "nest": outer}, tmp_path / "w.pt")
    with pytest.raises(UnusableInput, match="more than 5000 entries"):
        read_foreign(tmp_path / "w.pt")
