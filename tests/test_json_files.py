"""What is read back may be damaged: one sentence with the file, nothing else hidden."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from each import each
from homolog.cli import main
from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.events import Note
from homolog.features.files import FeatureCard, commit, feature_paths, new_array
from homolog.features.files import read_card as read_feature_card
from homolog.gui.runs.control import RunList
from homolog.gui.shared.models import find_models
from homolog.gui.shared.runs import RunStory
from homolog.json_files import object_or_none, parsed_object, read_object
from homolog.model_files.card import read_card
from homolog.model_files.folder import generations, load_state, save_state
from homolog.pretrain.settings import resolve
from homolog.runs import launch
from homolog.runs.jobs import JOBS
from homolog.runs.run import Run
from homolog.runs.worker import execute
from homolog.store.store import Store
from homolog.training.loop import INFO
from homolog.training.planning import read_plan
from toy_training import ToyFeed, run_all, toy

OTHERS: tuple[Any, ...] = (
    None, True, 7, -1, 10**30, 1e308, float("nan"), "x", [], ["x"], {}, {"a": 1},
)  # fmt: skip
PYTHON = (
    "' object", "NoneType", "subscript", "codec", "Expecting", "argument", "unpack",
    "invalid literal", "attribute", "indices",
)  # fmt: skip


@each(
    "text, said",
    [
        ("", "it is empty"),
        ('{"a": 1,\n', "it is not JSON from line 2, column 1 on"),
        ("[1]", "expected an object {...}, got [1]"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\x00{}", "it is not UTF-8 text"),
        ("{}", "steps is missing"),
        ('{"steps": "9"}', 'steps must be a whole number, got "9"'),
        ('{"steps": true}', "steps must be a whole number, got true"),
        ('{"steps": 1e999}', "steps must be a whole number"),
        (f'{{"steps": {10**30}}}', "steps must be a whole number"),
        ('{"steps": 9, "size": [1, 2]}', "size must be a list of 3, each a number"),
        ('{"steps": 9, "size": [1, 2, NaN]}', "size must be a list of 3"),
        ('{"steps": 9, "who": {"pid": []}}', "who.pid must be a whole number, got []"),
    ],
)
def test_a_shape_is_told_with_the_place_that_breaks_it(
    text: str | bytes, said: str
) -> None:
    shape = {
        "steps": int, "size?": tuple[float, float, float] | None, "who?": {"pid": int},
    }  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(said)):
        parsed_object(text, shape)
    assert parsed_object('{"steps": 9, "size": null, "more": 1}', shape)["steps"] == 9


def test_a_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        read_object(path)
    path.write_text("{}")
    with pytest.raises(UnusableInput, match=r"a\.json is damaged \(larger than 0 MiB"):
        read_object(path, most_bytes=1)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnusableInput, match=r"a\.json cannot be read"):
        read_object(path)


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b'{"a": "x"}', b"\xff"])
def test_a_file_one_can_do_without_is_nothing(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    assert object_or_none(path, {"a": int}) is None
    path.write_bytes(b'{"a": 1}')
    assert object_or_none(path, {"a": int}) == {"a": 1}


def variants(path: Path, picked: int) -> Iterator[bytes | None]:
    """Damaged contents of a file; None: it is gone."""
    whole = path.read_bytes()
    yield None
    yield from (b"", whole[: len(whole) // 2], b"\xff\x00", b"[" * 100_000)
    if path.suffix == ".json":
        content = json.loads(whole)
        places = [(), *_places(content)]
        chance = random.Random(0)
        for place in (*places[:1], *chance.sample(places, min(picked, len(places)))):
            for other in OTHERS:
                yield json.dumps(_with(content, place, other)).encode()
    elif path.suffix in (".csv", ".jsonl"):
        for line in (
            b'"\n', b"x,y\n", b"1e999,x\n", b"[]\n",
            b'{"event": "step", "index": []}\n',
            b'{"event": "step", "index": 1, "total": 2, "losses": {"a": "x"}}\n',
            b'{"event": "saved", "path": 5}\n',
        ):  # fmt: skip
            yield whole + line
            yield line + whole


def _places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*at, key)
            yield from _places(value, (*at, key))


def _with(content: Any, place: tuple[Any, ...], other: Any) -> Any:
    if not place:
        return other
    key, *rest = place
    return {**content, key: _with(content[key], tuple(rest), other)}


def each_damage(
    file: Path, look: Callable[[], str], picked: int = 6
) -> Iterator[tuple[bytes | None, str]]:
    """What is said with each damage of a file; it is whole again afterwards."""
    whole = file.read_bytes()
    for content in variants(file, picked):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        said = look()
        assert not any(word in said for word in PYTHON), (file.name, content, said)
        yield content, said
        file.write_bytes(whole)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["homolog", *map(str, words)])
        with pytest.raises(SystemExit):
            main()
        text = capsys.readouterr()
        assert "HOMOLOG_TRACEBACK" not in text.err, text.err  # none of our errors
        return text.out + text.err

    return call


@pytest.fixture
def runs(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two finished runs of the toy; the second has a model."""
    monkeypatch.setitem(JOBS, "toy", "toy_training:job")
    folder = tmp_path / "runs"
    settings = {"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_every": 2}
    for name in ("a", "b"):
        run = Run.create(folder / name, "toy", {"training": settings})
        list(execute(run))
    shutil.copytree(encoder, folder / "b" / "model")
    return folder


@pytest.mark.parametrize(
    "name", ["run.json", "events.jsonl", "metrics.csv", "plan.json"]
)
def test_a_damaged_run_hides_no_other(name: str, runs: Path, shell: Any) -> None:
    def look() -> str:
        RunStory(runs / "a").read_on()
        rows = RunList(runs).read()
        assert [r.state for r in rows if r.name == "b"] == ["finished"]
        return str(shell("runs", "show", runs / "a")) + "".join(r.reason for r in rows)

    for _, said in each_damage(runs / "a" / name, look):
        if "damaged (" in said:
            assert name in said
    listed = shell("runs", "list", runs)
    assert listed.count("finished") == 2


def test_a_config_of_another_type_is_a_damaged_run(runs: Path, shell: Any) -> None:
    path = runs / "a" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": ["x"]}))
    listed = shell("runs", "list", runs)
    assert 'run.json is damaged (config must be an object, got ["x"])' in listed
    assert "b  finished" in listed


def test_a_damaged_model_hides_no_other(runs: Path, encoder: Path, shell: Any) -> None:
    shutil.copytree(encoder, runs / "a" / "model")

    def look() -> str:
        found = {m.name: m.damaged for m in find_models(runs, runs / "none")}
        assert found["b"] == ""
        try:
            read_card(runs / "a" / "model")
        except UnusableInput as error:
            return str(error) + found.get("a", "")
        return ""

    for _, said in each_damage(runs / "a" / "model" / "model.json", look, 20):
        if said:
            assert "model.json" in said
    assert "damaged:" not in shell("models", "list", runs)


def test_a_damaged_feature_card_is_one_sentence(tmp_path: Path) -> None:
    path, card_path = feature_paths(tmp_path, "scan", "0123", "4567")
    array, half = new_array(path, (1, 2, 3), 4)
    places = np.eye(4).tolist()
    card = FeatureCard("4567", "0123", "ab", "scan", (1, 2, 3), 4, (2, 2, 2), places)
    commit(array, half, path, card)

    def look() -> str:
        try:
            read_feature_card(card_path)
        except UnusableInput as error:
            return str(error)
        return ""

    assert read_feature_card(card_path) == card
    for content, said in each_damage(card_path, look, 20):
        assert not said or card_path.name in said
        assert said or content


def test_a_card_names_files_beside_it_only(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    card = json.loads((folder / "model.json").read_text())
    card["weights"] = "../other/encoder.safetensors"
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(UnusableInput, match="names of files beside it"):
        read_card(folder)


@each(
    "damage",
    [
        b"",
        b"\xff\x00\xfe\n1\n",
        b"x,y\n1,2\n",
        b'"\n',
        b"step,error,pull\n1,x,2\n",
        None,
    ],
)
def test_a_damaged_table_does_not_block_a_sound_checkpoint(
    damage: bytes | None, tmp_path: Path
) -> None:
    run_all(toy(), ToyFeed(), tmp_path, steps=12, log_every=1, checkpoint_every=6)
    shutil.rmtree(generations(tmp_path)[0])  # as it was after step 6
    table = tmp_path / "metrics.csv"
    if damage is None:
        table.write_bytes(table.read_bytes() + b"torn,line\n")
    else:
        table.write_bytes(damage)
    _, events = run_all(toy(), ToyFeed(), tmp_path, steps=12, log_every=1)
    assert table.read_text().splitlines()[-1].startswith("12,")
    told = [e.text for e in events if isinstance(e, Note) and "metrics.csv" in e.text]
    assert bool(told) == (damage != b"")
    if told:
        assert (tmp_path / "metrics.damaged.csv").exists()


def test_checkpoints_that_are_gone_are_missed(runs: Path, shell: Any) -> None:
    run = Run(runs / "a")
    lines = run.journal._path.read_text().splitlines()
    run.journal._path.write_text(
        "\n".join(x for x in lines if '"finished"' not in x) + "\n"
    )
    launch.check_resumable(run)
    shutil.rmtree(runs / "a" / "checkpoints")
    said = shell("runs", "resume", runs / "a")
    assert "saved its state (step_00000006)" in said
    assert "is gone or empty" in said
    assert "put it back" in said


def test_beginning_again_without_a_checkpoint_is_said(tmp_path: Path) -> None:
    run_all(toy(), ToyFeed(), tmp_path, steps=3)
    shutil.rmtree(tmp_path / "checkpoints")
    _, events = run_all(toy(), ToyFeed(), tmp_path, steps=3)
    assert any(isinstance(e, Note) and "begins again" in e.text for e in events)


@each("field, value", [
        ("info", {"plan": []}), ("step", "x"), ("sha256", 5), ("info", []),
        ("info_sha256", "0" * 64),
    ])  # fmt: skip
def test_a_generation_of_another_shape_is_passed_over(
    field: str, value: Any, tmp_path: Path
) -> None:
    run_all(toy(), ToyFeed(), tmp_path, steps=6, checkpoint_every=2)
    newest, older = generations(tmp_path)
    path = newest / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    saved = load_state(tmp_path, INFO)
    assert saved is not None
    assert saved.path == older
    assert newest.name in saved.damaged[0]


def test_one_flipped_number_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    save_state(tmp_path, 3, {}, {"position": {"done": 3}})
    path = generations(tmp_path)[0] / "state.json"
    path.write_text(path.read_text().replace('"done": 3', '"done": 7'))
    with pytest.raises(JobError, match="does not match its checksum"):
        load_state(tmp_path)


@each(
    "change", [{"total_steps": "9"}, {"batch_size": 0}, {"precision": "x"}, {"what": 1}]
)
def test_a_damaged_plan_is_one_sentence(change: Any, tmp_path: Path) -> None:
    run_all(toy(), ToyFeed(), tmp_path, steps=2)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnusableInput, match=r"plan\.json is damaged"):
        read_plan(path)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("cases", [], "cases must be an object"),
        ("label_names", {"1": 2}, "label_names must be an object, each value a text"),
        ("preprocessing", "x", "preprocessing must be an object"),
    ],
)
def test_a_damaged_list_of_cases_is_one_sentence(
    part: str, change: Any, said: str, three_patients: Store, tmp_path: Path
) -> None:
    content = json.loads((three_patients.path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**content, part: change}))
    with pytest.raises(UnusableInput) as caught:
        Store.open(tmp_path)
    assert said in str(caught.value)
    assert "store.json" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": {"channels": [100_000] * 4}},
        {"method": {"queue_length": 10**12}, "backbone": {"channels": [4, 8, 8]}},
        {"training": {"batch_size": 10**9}},
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_taken(
    settings: dict[str, Any], three_patients: Store
) -> None:
    with pytest.raises((UnusableInput, ConfigError)) as caught:
        resolve("s2dc", [three_patients.path], recipe="cpu", settings=settings)
    assert "GB of memory" in str(caught.value) or "65536" in str(caught.value)


@each("text", ["[1]", '{"method": 5}', "[[", "[" * 100_000])
def test_a_recipe_of_another_shape_is_one_sentence(
    text: str, three_patients: Store, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.json"):
        resolve("mae", [three_patients.path], recipe=str(path))
