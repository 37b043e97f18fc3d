"""The pretraining job: build, train, save the encoder with its card."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from homolog.config import from_dict, to_dict
from homolog.distributed import world
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Saved, Stopped, without_stopped
from homolog.feed.batches import Feed, Pairing
from homolog.feed.reading import CaseRef
from homolog.json_files import read_object
from homolog.methods.base import Embedder, Method
from homolog.model_files.encoder import encoder_id
from homolog.model_files.folder import save_model
from homolog.nn.optim import parameter_groups
from homolog.pretrain.preview import SlicePreview
from homolog.pretrain.settings import (
    PretrainConfig,
    build_method,
    chosen_cases,
    find_partners,
    padding_note,
    partners_note,
    shares_note,
)
from homolog.store.depths import write_depths
from homolog.store.learnt_spacing import sizes_note
from homolog.store.names import join_labels, refuse_ignored, store_titles
from homolog.store.store import Store
from homolog.training.config import TrainingResult
from homolog.training.loop import train
from homolog.training.run_settings import (
    backbone_card,
    length_card,
    preparation_card,
    preparation_note,
    store_card,
    take_device,
    trained_on,
)
from homolog.training.stepping import resolve_precision
from homolog.words import utc_now

# Of runs begun before requests were completed by the worker: their complete settings.
_FORMER_SETTINGS = "resolved.json"


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Pretrain an encoder; resumes by itself where ``folder`` holds a checkpoint.

    A stopped pretraining saves its encoder too, so that what was learnt can be used.

    Args:
        config: As returned by ``resolve``.
        folder: The run; gets ``checkpoints/``, ``metrics.csv`` and ``model/``.

    Returns:
        Summary, JSON types: ``model``, ``encoder_id``, ``steps``, ``losses`` and more.
    """
    began = time.monotonic()
    settings = _complete(config, folder)
    device = take_device(settings.device, settings.threads)
    stores = [Store.open(path) for path in settings.stores]
    _check_unchanged(settings, stores)
    cases = chosen_cases(stores, settings.without_splits)
    method = build_method(settings)
    partners = find_partners(method, stores, cases, settings.seed)
    for sentence in list(_opening(settings, method, stores, cases, partners)):
        yield Note(sentence)
    if any(spec.depths for spec in method.views().values()):
        yield from write_depths([(case.store, case.card) for case in cases])
    feed = _feed(settings, method, cases, partners, device)
    if note := shares_note(feed):
        yield Note(note)
    plan = settings.training
    precision = resolve_precision(plan.precision, device, method)
    training = train(
        method, feed, plan, folder=folder, device=device, seed=settings.seed,
        draw=SlicePreview(method, cases, device, precision),
        parameter_groups=parameter_groups(
            method, plan.weight_decay, factor=method.rate_factors()
        ),
        began=began,
    )  # fmt: skip
    result = yield from without_stopped(training)
    summary = _summary(settings, cases, result)
    if world().is_first and result.steps:
        path = _save(folder / "model", settings, method, stores, cases, result)
        summary |= {"model": str(path), "encoder_id": encoder_id(method.encoder())}
        yield Saved(str(path), "encoder")
    if result.stopped:
        yield Stopped(result.steps)
    return summary


def embedding_card(embedder: Embedder) -> dict[str, Any]:
    """How dense features are made: map and stride per feature, and which have heads."""
    strides = {name: list(embedder.stride(name)) for name in embedder.maps}
    first = next(iter(embedder.maps))
    return {
        "maps": dict(embedder.maps),
        "strides": strides,
        "stride": strides[first],
        "heads": list(embedder.heads),
    }


def deviations(method: type) -> str:
    """The docstring's ``Differs from the paper:`` paragraph on one line, or empty."""
    _, mark, rest = (method.__doc__ or "").partition("Differs from the paper:")
    return " ".join(rest.split("\n\n")[0].split()) if mark else ""


def _complete(config: Mapping[str, Any], folder: Path) -> PretrainConfig:
    former = folder / _FORMER_SETTINGS
    if "settings" in config and former.exists():
        config = read_object(former)
    return from_dict(PretrainConfig, config, where="pretrain")


def _check_unchanged(settings: PretrainConfig, stores: Sequence[Store]) -> None:
    for store, began_with in zip(stores, settings.store_hashes, strict=False):
        if store.hash != began_with:
            raise UnusableInput(
                f"the store {store.path} changed since this run began (hash "
                f"{began_with}, now {store.hash}); start a new run, or prepare it as "
                "it was."
            )


def _feed(
    settings: PretrainConfig,
    method: Method,
    cases: Sequence[CaseRef],
    partners: Pairing | None,
    device: torch.device,
) -> Feed:
    here = world()
    return Feed(
        cases,
        method.views(),
        batch_size=settings.training.batch_size,
        seed=settings.seed,
        balance=settings.balance,
        rank=here.rank,
        world_size=here.size,
        threads=max(1, settings.feed_threads),
        partners=partners,
        share_by=settings.share_by,
        share_power=settings.share_power,
        turns=_numbers(method.turns(), [c.card.modality for c in cases]),
        targets=method.targets(cases),
        phases=method.phases(),
        device=device,
    )


def _numbers(names: Sequence[str], values: Sequence[str | None]) -> list[int] | None:
    """Place of each value among the names, -1 where it is none; None without names."""
    known = {name: number for number, name in enumerate(names)}
    return [known.get(value or "", -1) for value in values] if names else None


def _opening(
    settings: PretrainConfig,
    method: Method,
    stores: Sequence[Store],
    cases: Sequence[CaseRef],
    partners: Pairing | None,
) -> Iterator[str]:
    """What the user should know before the first step, in sentences."""
    yield from settings.notes
    weights = sum(p.numel() for p in method.encoder().parameters())
    kinds = Counter(case.card.modality for case in cases)
    yield (
        f"{settings.method} on {settings.backbone['name']} ({weights / 1e6:.2f} M "
        f"weights), {len(cases)} scans "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}), "
        f"recipe {settings.recipe}."
    )
    if note := padding_note(method.views(), cases):
        yield note
    without = {kind: n for kind, n in kinds.items() if kind not in method.turns()}
    if method.turns() and without:
        scans = ", ".join(f"{n} {kind}" for kind, n in without.items())
        yield f"left out, for they are too few for a turn: {scans}."
    used = {id(case.store) for case in cases if case.card.label_values}
    if method.uses_labels:
        for store in (s for s in stores if id(s) in used):
            refuse_ignored(store.path, store.label_names)
    yield from method.remarks(
        {str(s.path): len(s.label_names) if id(s) in used else 0 for s in stores}
    )
    for note in (
        sizes_note(case.card for case in cases),
        preparation_note(stores),
        "" if partners is None else partners_note(partners, cases),
    ):
        if note:
            yield note


def _save(
    folder: Path,
    settings: PretrainConfig,
    method: Method,
    stores: Sequence[Store],
    cases: Sequence[CaseRef],
    result: TrainingResult,
) -> Path:
    """The model folder: the encoder, the heads of its embedder, and the card."""
    embedder = method.embedder()
    card = {
        "kind": "encoder",
        "method": settings.method,
        "method_config": settings.method_config,
        "title": method.title,
        "paper": method.paper,
        "uses_labels": any(method.learns_from_labels(c.card) for c in cases),
        "deviations": deviations(type(method)),
        "backbone": backbone_card(method.encoder()),
        "embedding": embedding_card(embedder),
        **preparation_card(stores, cases),
        **_data_card(stores, cases),
        **store_card(stores),
        "trained_on": trained_on(cases),
        "window": list(next(iter(method.views().values())).size),
        "recipe": settings.recipe,
        "started_from": settings.encoder or "random weights",
        "training": to_dict(settings.training),
        "seed": settings.seed,
        **length_card(result),
        "precision": result.precision,
        "losses": dict(result.losses),
        "monitors": dict(result.monitors),
        "licence": "code Apache-2.0; weights as the licence of the training data",
        "created": utc_now(),
    }
    heads = embedder.own_state()
    extra = {"embedder": heads} if heads else None
    return save_model(folder, method.encoder().state_dict(), card, "encoder", extra)


def _data_card(stores: Sequence[Store], cases: Sequence[CaseRef]) -> dict[str, Any]:
    """What the scans and labels are."""
    spacings = sorted({case.card.spacing_mm for case in cases})
    titles = store_titles([store.path for store in stores])
    called = [(t, s.label_names) for t, s in zip(titles, stores, strict=True)]
    return {
        "spacing_mm": [list(s) for s in (spacings[0], spacings[-1])],
        "axes": "z, y, x of LPS",
        "modalities": dict(Counter(case.card.modality for case in cases)),
        "cases": len(cases),
        "label_names": {str(v): n for v, n in join_labels(called).names.items()},
    }


def _summary(
    settings: PretrainConfig, cases: Sequence[CaseRef], result: TrainingResult
) -> dict[str, Any]:
    return {
        "method": settings.method,
        "backbone": settings.backbone["name"],
        "recipe": settings.recipe,
        "seed": settings.seed,
        "cases": len(cases),
        **result.values("steps", "total_steps", "stopped", "losses", "monitors"),
        **result.values("bad_steps", "batch_size", "accumulate", "precision"),
        **result.values("seconds_per_step", "peak_memory_bytes"),
    }
