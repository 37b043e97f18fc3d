"""A fine-tuning starts with all that was trained: encoder, decoder, known classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from homolog.backbones import build
from homolog.cli.models import command as models
from homolog.config import from_dict
from homolog.errors import UnusableInput
from homolog.events import Note, drain
from homolog.finetune.job import job
from homolog.finetune.settings import check_cases, resolve, task_of
from homolog.finetune.start import Start, starting_point
from homolog.model_files.decoder import (
    SavedDecoder,
    fill_decoder,
    head_classes,
    load_decoder,
)
from homolog.model_files.folder import load_model, load_state, save_model
from homolog.nn.decoders import suited_decoder
from homolog.nn.decoders.residual import ResidualDecoder
from homolog.pretrain.job import job as pretrain_job
from homolog.pretrain.settings import PretrainConfig, build_method, go_on_decoding
from homolog.pretrain.settings import resolve as resolve_pretraining
from homolog.store.store import Store
from homolog.tasks.segment.network import SegmentModule

NETWORK = {"name": "resunet", "channels": [8, 12, 16]}
CROP = [16, 32, 32]


def pretraining(store: Store, **changes: Any) -> dict[str, Any]:
    training = {"steps": 2, "batch_size": 1, "dry_run_steps": 0, "previews": 0}
    return resolve_pretraining(
        "mae", [store.path], recipe="cpu", device="cpu",
        settings={
            "method": {"size": CROP, "token_stride": 8},
            "backbone": NETWORK,
            "training": training,
        },
        **changes,
    )  # fmt: skip


def finetuning(store: Store, encoder: Path | str, **task: Any) -> dict[str, Any]:
    return {
        "task": "segment",
        "store": str(store.path),
        "encoder": str(encoder),
        "backbone": NETWORK if encoder == "scratch" else {},
        "task_config": {"window": CROP, "intensity": 0.0, **task},
        "training": {"steps": 1, "batch_size": 1, "dry_run_steps": 0, "previews": 0},
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def pretrained(phantom_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    drain(pretrain_job(pretraining(phantom_store), folder))
    return folder


@pytest.fixture(scope="module")
def segmenter(
    pretrained: Path, phantom_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    drain(job(finetuning(phantom_store, pretrained), folder))
    return folder


def started(
    config: dict[str, Any], spec: dict[str, Any]
) -> tuple[SegmentModule, Start]:
    settings = resolve(config)
    start = starting_point(settings, check_cases(settings))
    module, start = start.module(task_of(settings), spec, settings.seed)
    assert isinstance(module, SegmentModule)
    return module, start


def spec_of(store: Store, names: dict[int, str] | None = None) -> dict[str, Any]:
    names = store.label_names if names is None else names
    return {
        "window": CROP,
        "channels": 1,
        "label_values": [0, *names],
        "label_names": {str(v): n for v, n in names.items()},
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor], names: Any) -> bool:
    return all(torch.equal(a[name], b[name]) for name in names)


def test_a_pretraining_keeps_its_decoder_as_it_was_at_the_end(
    pretrained: Path,
) -> None:
    card = load_model(pretrained).card
    assert card["decoder"]["kind"] == "residual"
    assert card["decoder"]["width"] == 16
    end = load_state(pretrained)
    saved = load_decoder(pretrained)
    assert end is not None
    assert saved is not None
    trained = {
        name.removeprefix("module/decoder."): value
        for name, value in end.tensors.items()
        if name.startswith("module/decoder.")
    }
    assert same(saved.state, trained, saved.state)


def test_fine_tuning_starts_with_exactly_these_weights(
    pretrained: Path, phantom_store: Store
) -> None:
    spec = spec_of(phantom_store)
    module, start = started(finetuning(phantom_store, pretrained), spec)
    saved = load_decoder(pretrained)
    assert saved is not None
    own = module.network.decoder.state_dict()
    body = [name for name in own if not name.startswith("head.")]
    assert same(own, saved.state, body)
    encoder = load_model(pretrained).state
    assert same(module.network.encoder.state_dict(), encoder, encoder)
    named = {n for n, p in module.named_parameters() if p.requires_grad}
    heads = {"network.decoder.head.weight", "network.decoder.head.bias"}
    assert start.taken == named - heads
    count = len(own)
    assert start.notes[-1] == (
        f"decoder: {count - 2} of {count} tensors from pretraining, 2 new (head)."
    )
    assert start.origin["decoder"]["new"] == ["head.weight", "head.bias"]
    random, scratch = started(finetuning(phantom_store, "scratch"), spec)
    assert scratch.taken == frozenset()
    fresh = random.network.decoder.state_dict()
    assert same(own, fresh, ("head.weight", "head.bias"))  # the same draw
    assert not same(own, fresh, ["stem.weight"])


def test_a_decoder_is_left_where_it_is_unwanted_or_absent(
    pretrained: Path, phantom_store: Store, tmp_path: Path
) -> None:
    spec = spec_of(phantom_store)
    unwanted, start = started(
        finetuning(phantom_store, pretrained, decoder="none"), spec
    )
    model = load_model(pretrained)
    card = {k: v for k, v in model.card.items() if k not in ("sha256", "decoder")}
    save_model(tmp_path / "old", model.state, card)  # of before decoders were kept
    old, older = started(finetuning(phantom_store, tmp_path / "old"), spec)
    scratch, _ = started(finetuning(phantom_store, "scratch"), spec)
    random = scratch.network.decoder.state_dict()
    for module, begun in ((unwanted, start), (old, older)):
        assert same(module.network.decoder.state_dict(), random, random)
        assert not any("decoder" in name for name in begun.taken)
        assert any("encoder" in name for name in begun.taken)
        assert not any(note.startswith("decoder:") for note in begun.notes)


def test_a_run_says_and_records_what_it_took(
    segmenter: Path, pretrained: Path, phantom_store: Store, tmp_path: Path
) -> None:
    origin = load_model(segmenter).card["encoder"]
    assert origin["decoder"]["new"] == ["head.weight", "head.bias"]
    assert load_model(segmenter).card["decoder"]["kind"] == "residual"
    told = [
        event.text
        for event in job(finetuning(phantom_store, segmenter), tmp_path)
        if isinstance(event, Note)
    ]
    assert any("tensors from the segmentation model" in text for text in told)
    card = load_model(tmp_path).card
    assert card["encoder"]["kind"] == "segment"
    known = load_model(segmenter).card["trained_on"]
    assert len(card["encoder"]["labels_of"]) == len(known)


def test_a_segmentation_model_hands_on_the_classes_it_knows_by_name(
    segmenter: Path, phantom_store: Store
) -> None:
    model = load_model(segmenter)
    names = {int(v): n for v, n in model.card["label_names"].items()}
    whole = spec_of(phantom_store, names)
    module, start = started(finetuning(phantom_store, segmenter), whole)
    assert same(module.network.state_dict(), model.state, model.state)
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert start.taken == learning
    first, *others = names.values()
    mixed = {5: "nobody knows", 9: others[0].upper(), 11: first}
    module, start = started(
        finetuning(phantom_store, segmenter), spec_of(phantom_store, mixed)
    )
    head = module.network.decoder.head.weight  # type: ignore[union-attr]
    saved = model.state["decoder.head.weight"]
    assert isinstance(head, Tensor)
    for row, value in ((0, 0), (2, 2), (3, 1)):
        assert torch.equal(head[row], saved[value])
    assert not torch.equal(head[1], saved[1])
    assert "network.decoder.head.weight" not in start.taken
    assert f"of the head {others[0]}, {first}" in start.notes[-1]


def test_classes_without_a_name_or_of_one_name_are_nobodys() -> None:
    assert head_classes([0, 1, 2], {1: "Liver ", 2: "label 2"}) == (
        "background", "liver", "",
    )  # fmt: skip
    network = build("resunet", {"channels": [4, 8]})
    saved = SavedDecoder(
        suited_decoder(network, 3).state_dict(), ("background", "liver", ""), True
    )
    for wanted in (("background", ""), ("background", "liver", "liver")):
        taken = fill_decoder(suited_decoder(network, len(wanted)), saved, wanted)
        assert taken.classes == ()
        assert {n for n in taken.new if n.startswith("head")} == set(taken.new)
        assert len(taken.new) == 2


def test_a_decoder_of_another_network_is_left_alone() -> None:
    saved = SavedDecoder(
        suited_decoder(build("resunet", {"channels": [4, 8, 16]}), 1).state_dict()
    )
    other = suited_decoder(build("resunet", {"channels": [6, 12]}), 1)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    taken = fill_decoder(other, saved, ())
    assert taken.whole == ("stem.weight",)
    assert same(before, other.state_dict(), taken.new)
    assert "1 of 11 tensors" in taken.words("pretraining")


def test_a_damaged_decoder_is_refused(pretrained: Path, tmp_path: Path) -> None:
    model, saved = load_model(pretrained), load_decoder(pretrained)
    assert saved is not None
    folder = save_model(
        tmp_path / "model", model.state, model.card, extra={"decoder": saved.state}
    )
    bad = {name: value.clone() for name, value in saved.state.items()}
    bad["stem.weight"][0] = float("nan")
    network = build("resunet", {"channels": NETWORK["channels"]})
    with pytest.raises(UnusableInput, match="NaN"):
        fill_decoder(suited_decoder(network, 1), SavedDecoder(bad), (), "here")
    path = folder / "decoder.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UnusableInput, match=r"decoder\.safetensors"):
        load_decoder(folder)


def test_a_pretraining_goes_on_with_a_decoder(
    pretrained: Path, phantom_store: Store
) -> None:
    settings = from_dict(
        PretrainConfig, pretraining(phantom_store, encoder=str(pretrained))
    )
    method, saved = build_method(settings), load_decoder(pretrained)
    decoder = method.dense_decoder()
    assert isinstance(decoder, ResidualDecoder)
    assert saved is not None
    assert not same(decoder.state_dict(), saved.state, saved.state)
    assert "from pretraining" in go_on_decoding(settings, method)
    assert same(decoder.state_dict(), saved.state, saved.state)


def test_models_are_shown_and_exported_with_their_decoder(
    pretrained: Path, tmp_path: Path
) -> None:
    run = CliRunner()
    shown = run.invoke(models, ["list", str(pretrained)])
    assert "mae on resunet, with its decoder" in shown.output
    checked = run.invoke(models, ["check", str(pretrained)])
    assert "with a residual decoder, 16 wide" in checked.output
    out = tmp_path / "net.safetensors"
    result = run.invoke(
        models, ["export", str(pretrained), "--out", str(out), "--json"]
    )
    told = json.loads(result.output.splitlines()[-1])
    saved = load_decoder(pretrained)
    assert saved is not None
    assert same(load_file(told["decoder"]), saved.state, saved.state)
    copied = tmp_path / "copied"
    result = run.invoke(models, ["import", str(pretrained), "--out", str(copied)])
    assert result.exit_code == 0
    again = load_decoder(copied)
    assert again is not None
    assert same(again.state, saved.state, saved.state)
