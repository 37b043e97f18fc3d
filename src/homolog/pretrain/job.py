"""The pretraining job: build, train, save the encoder with its card."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from homolog.config import from_dict, to_dict
from homolog.data.depths import write_depths
from homolog.data.label_names import join_labels, refuse_ignored, store_titles
from homolog.data.learnt_spacing import KEY, LearntSpacing, sizes_note
from homolog.data.store import Store
from homolog.distributed import choose_device, world
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Saved, Stopped, without_stopped
from homolog.feed import CaseRef, Feed
from homolog.json_files import read_object
from homolog.methods._base import Embedder, Method
from homolog.model_files import encoder_id, save_model
from homolog.model_files.tensor_files import write_json
from homolog.nn.optim import parameter_groups
from homolog.pretrain.cases import chosen_cases, padding_note, shares_note
from homolog.pretrain.pairs import find_partners, partners_note
from homolog.pretrain.preview import SlicePreview
from homolog.pretrain.settings import PretrainConfig, build_method, resolve_request
from homolog.training import TrainingResult, train
from homolog.training.precision import resolve_precision


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Pretrain an encoder; resumes by itself where ``folder`` holds a checkpoint.

    A stopped pretraining saves its encoder too, so that what was learnt can be used.

    Args:
        config: As returned by ``resolve``; or, from a process without torch, the
            arguments of ``resolve`` by name, ``settings`` among them.
        folder: The run; gets ``checkpoints/``, ``metrics.csv`` and ``model/``.

    Returns:
        Summary, JSON types: ``model``, ``encoder_id``, ``steps``, ``losses`` and more.
    """
    began = time.monotonic()
    settings = _settings(config, folder)
    device = choose_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    stores = [Store.open(path) for path in settings.stores]
    _check_unchanged(settings, stores)
    cases = chosen_cases(stores, settings.without_splits)
    method = build_method(settings)
    partners = find_partners(method, stores, cases, settings.seed)
    for sentence in (*settings.notes, *_opening(settings, method, stores, cases)):
        yield Note(sentence)
    if partners is not None and (note := partners_note(partners, cases)):
        yield Note(note)
    if any(spec.depths for spec in method.views().values()):
        yield from write_depths([(case.store, case.card) for case in cases])
    here = world()
    feed = Feed(
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
    if note := shares_note(feed):
        yield Note(note)
    training = train(
        method, feed, settings.training,
        folder=folder, device=device, seed=settings.seed,
        draw=_preview(settings, method, cases, device),
        parameter_groups=parameter_groups(
            method, settings.training.weight_decay, factor=method.rate_factors()
        ),
        began=began,
    )  # fmt: skip
    result = yield from without_stopped(training)
    summary = _summary(settings, cases, result)
    if here.is_first and result.steps:
        path = _save(folder / "model", settings, method, stores, cases, result)
        summary |= {"model": str(path), "encoder_id": encoder_id(method.encoder())}
        yield Saved(str(path), "encoder")
    if result.stopped:
        yield Stopped(result.steps)
    return summary


def _numbers(names: Sequence[str], values: Sequence[str | None]) -> list[int] | None:
    """Place of each value among the names, -1 where it is none; None without names."""
    known = {name: number for number, name in enumerate(names)}
    return [known.get(value or "", -1) for value in values] if names else None


def _preview(
    settings: PretrainConfig,
    method: Method,
    cases: Sequence[CaseRef],
    device: torch.device,
) -> SlicePreview:
    precision = resolve_precision(settings.training.precision, device, method)
    return SlicePreview(method, cases, device, precision)


def _settings(config: Mapping[str, Any], folder: Path) -> PretrainConfig:
    """Resolve a request once; a resumed run takes the answer of the first time."""
    if "settings" in config:
        path = folder / "resolved.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            resolved = resolve_request(config)
            if world().is_first:
                write_json(path, resolved)
            config = resolved
        else:
            config = read_object(path)
    return from_dict(PretrainConfig, config, where="pretrain")


def _check_unchanged(settings: PretrainConfig, stores: Sequence[Store]) -> None:
    for store, told in zip(stores, settings.store_hashes, strict=False):
        if store.hash != told:
            raise UnusableInput(
                f"the store {store.path} changed since this run began (hash {told}, "
                f"now {store.hash}); start a new run, or prepare it as it was."
            )


def _opening(
    settings: PretrainConfig,
    method: Method,
    stores: Sequence[Store],
    cases: Sequence[CaseRef],
) -> list[str]:
    weights = sum(p.numel() for p in method.encoder().parameters())
    kinds = Counter(case.card.modality for case in cases)
    sentences = [
        f"{settings.method} on {settings.backbone['name']} ({weights / 1e6:.2f} M "
        f"weights), {len(cases)} scans "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}), "
        f"recipe {settings.recipe}."
    ]
    if note := padding_note(method.views(), cases):
        sentences.append(note)
    if method.turns():
        without = {kind: n for kind, n in kinds.items() if kind not in method.turns()}
        if without:
            told = ", ".join(f"{n} {kind}" for kind, n in without.items())
            sentences.append(f"left out, for they are too few for a turn: {told}.")
    used = {id(case.store) for case in cases if case.card.label_values}
    if method.uses_labels:
        for store in (s for s in stores if id(s) in used):
            refuse_ignored(store.path, store.label_names)
    sentences += method.remarks(
        {str(s.path): len(s.label_names) if id(s) in used else 0 for s in stores}
    )
    if note := sizes_note(case.card for case in cases):
        sentences.append(note)
    if len({str(to_dict(store.preprocessing)) for store in stores}) > 1:
        sentences.append(
            "the stores were prepared with different settings; the model will prepare "
            f"new scans as {stores[0].path} does."
        )
    return sentences


def _save(
    folder: Path,
    settings: PretrainConfig,
    method: Method,
    stores: Sequence[Store],
    cases: Sequence[CaseRef],
    result: TrainingResult,
) -> Path:
    embedder = method.embedder()
    card = {
        "kind": "encoder",
        "method": settings.method,
        "method_config": settings.method_config,
        "title": method.title,
        "paper": method.paper,
        "uses_labels": any(method.learns_from_labels(c.card) for c in cases),
        "deviations": deviations(type(method)),
        "backbone": {
            "name": settings.backbone["name"],
            "config": to_dict(method.encoder().config),
        },
        "embedding": embedding_card(embedder),
        **_data_card(stores, cases),
        "window": list(next(iter(method.views().values())).size),
        "recipe": settings.recipe,
        "started_from": settings.encoder or "random weights",
        "training": to_dict(settings.training),
        "seed": settings.seed,
        "steps": result.steps,
        "total_steps": result.total_steps,
        "complete": not result.stopped,
        "stopped": result.stopped,
        "precision": result.precision,
        "losses": dict(result.losses),
        "monitors": dict(result.monitors),
        "licence": "code Apache-2.0; weights as the licence of the training data",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    heads = embedder.own_state()
    extra = {"embedder": heads} if heads else None
    return save_model(folder, method.encoder().state_dict(), card, "encoder", extra)


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


def _data_card(stores: Sequence[Store], cases: Sequence[CaseRef]) -> dict[str, Any]:
    first = stores[0]
    spacings = sorted({case.card.spacing_mm for case in cases})
    learnt = LearntSpacing.of_cases(case.card for case in cases)
    titles = store_titles([store.path for store in stores])
    told = [(t, s.label_names) for t, s in zip(titles, stores, strict=True)]
    names = {str(v): name for v, name in join_labels(told).names.items()}
    return {
        "preprocessing": to_dict(first.preprocessing),
        KEY: None if learnt is None else learnt.to_dict(),
        "spacing_mm": [list(s) for s in (spacings[0], spacings[-1])],
        "axes": "z, y, x of LPS",
        "modalities": dict(Counter(case.card.modality for case in cases)),
        "cases": len(cases),
        "label_names": names,
        "store_hash": first.hash,
        "store_hashes": [store.hash for store in stores],
        "trained_on": sorted(case.card.source_hash for case in cases),
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
        "steps": result.steps,
        "total_steps": result.total_steps,
        "stopped": result.stopped,
        "losses": dict(result.losses),
        "monitors": dict(result.monitors),
        "bad_steps": result.bad_steps,
        "batch_size": result.batch_size,
        "accumulate": result.accumulate,
        "precision": result.precision,
        "seconds_per_step": result.seconds_per_step,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def deviations(method: type) -> str:
    """The docstring's ``Differs from the paper:`` paragraph on one line, or empty."""
    _, mark, rest = (method.__doc__ or "").partition("Differs from the paper:")
    return " ".join(rest.split("\n\n")[0].split()) if mark else ""
