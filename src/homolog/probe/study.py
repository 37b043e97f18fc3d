"""Encoders held against networks with random weights, grey values and position."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from homolog.backbones import build
from homolog.config import config_hash, from_dict, to_dict
from homolog.distributed import choose_device
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, stopped_words
from homolog.features.config import EmbedConfig
from homolog.features.embed import DenseEncoder
from homolog.features.files import kept_features
from homolog.geometry.affine import Index
from homolog.methods import METHODS
from homolog.methods.base import Embedder
from homolog.model_files.decoder import fill_decoder, load_decoder
from homolog.model_files.encoder import LoadedEncoder, encoder_id, load_encoder
from homolog.model_files.facts import licence_words
from homolog.nn.decoders import Decoder, features_decoder, fine_cell
from homolog.probe.cases import choose_roles, draw_voxels, labels_of
from homolog.probe.config import ProbeConfig
from homolog.probe.cost import cost_of
from homolog.probe.scans import ScanProbe
from homolog.probe.scores import Scores
from homolog.probe.sources import AllMaps, EncoderSource, NoNetwork
from homolog.probe.verdict import best_of, verdict
from homolog.probe.voxels import VoxelProbe
from homolog.scans.problems import problem_of
from homolog.store.store import Store
from homolog.training.stepping import is_out_of_memory
from homolog.words import counted

Probe = VoxelProbe | ScanProbe
# Voxels (scans) that tell where grey values of labels lie, where classes are probed.
_GREYS = 200
# Seeds of random weights begin here: below it are those that trainings began with.
_APART = 7_340_033


@dataclass(frozen=True, eq=False)
class _Run:
    """What stays the same for all encoders."""

    probe: Probe
    store: Store
    embedding: EmbedConfig
    device: torch.device
    backbone: str | None
    folder: Path
    # architecture -> scores of networks with random weights
    randoms: dict[str, list[list[Scores]]] = field(default_factory=dict)


def probe_encoders(
    store: Store,
    encoders: Sequence[Path],
    config: ProbeConfig,
    embedding: EmbedConfig,
    *,
    device: str = "auto",
    backbone: str | None = None,
    folder: Path | None = None,
) -> Job[dict[str, Any]]:
    """What the frozen features of encoders tell of a store's labels.

    Args:
        store: With labels.
        encoders: Runs, model folders or weight files.
        config: How it is probed.
        embedding: How windows slide.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        backbone: Network of weight files that do not say it.
        folder: Where feature maps are kept; the user's cache if None.

    Returns:
        JSON types: ``kind``, ``labels`` (names), ``chance``, ``taught`` and ``judged``
        (patients), ``whom``, ``encoders`` (best first: ``name``, ``verdict``,
        ``features``, ``cost``, ``behind``: how far behind the best, and more),
        ``no_network``, ``verdict``, ``rows`` (every patient and label), ``failed``
        (encoder, reason), ``stopped``.

    Raises:
        UnusableInput: No labels, too few patients, or no encoder that can be read.
    """
    probe = yield from _begin(store, config)
    if probe is None:
        return {"stopped": True}
    with kept_features(folder) as place:
        run = _Run(
            probe, store, embedding, choose_device(device), backbone, Path(place)
        )
        none = yield from probe.run(_no_network(probe))
        if none is None:
            return {"stopped": True}
        entries: list[dict[str, Any]] = []
        rows = list(_rows("no network", "", none, probe))
        failed: list[dict[str, str]] = []
        for path, name in zip(encoders, short_names(encoders), strict=True):
            try:
                found = yield from _one(run, path, name)
            except (JobError, UnusableInput, ValueError) as error:
                if len(encoders) == 1:
                    raise
                failed.append({"encoder": str(path), "reason": problem_of(error).text})
                yield Note(f"{name}: {failed[-1]['reason']}", "warning")
                continue
            if found is None:
                return {"stopped": True}
            entries.append(found[0])
            rows += found[1]
    if not entries:
        raise UnusableInput(
            f"none of {counted(len(encoders), 'encoder')} could be probed; first "
            f"{failed[0]['reason']}"
        )
    return {**_told(probe, store, config, entries, none), "rows": rows,
            "failed": failed, "stopped": False}  # fmt: skip


def _begin(store: Store, config: ProbeConfig) -> Job[Probe | None]:
    """Choose patients and voxels; None when stopped."""
    maps = [
        c for c in store.cards if c.has_label and any(v > 0 for v in c.label_values)
    ]
    classes = [c for c in store.cards if c.target is not None]
    of = config.of
    if of == "auto":
        of = "labels" if maps else "classes"
    if not (maps if of == "labels" else classes):
        what = "label maps" if of == "labels" else "classes of whole scans"
        raise UnusableInput(f"{store.path} has no {what} to probe for.")
    if of == "labels":
        roles = choose_roles(
            store, lambda c: c in maps, config, config.patients or 3, config.most
        )
    else:
        roles = choose_roles(store, lambda c: c in classes, config, config.patients)
    for remark in roles.remarks:
        yield Note(remark)
    if len(roles.judged) < 3:
        yield Note(
            f"only {counted(len(roles.judged), 'patient')} can be judged: the interval "
            "says little.",
            "warning",
        )
    if of == "classes":
        return ScanProbe.of(roles, config)
    return (yield from VoxelProbe.draw(roles, labels_of(roles.taught), config))


def _no_network(probe: Probe) -> NoNetwork:
    if isinstance(probe, VoxelProbe):
        return NoNetwork.of(probe.taught)
    some = [c for p in probe.roles.taught for c in p.cases][:20]
    samples = [draw_voxels(c, (0,), 0, _GREYS, 0) for c in some]
    return NoNetwork.of(samples, place="size of the body")


def _one(
    run: _Run, path: Path, name: str
) -> Job[tuple[dict[str, Any], list[dict[str, Any]]] | None]:
    """The entry of one encoder and the rows of its table; None when stopped."""
    began = time.monotonic()
    loaded = load_encoder(path, run.backbone)
    dense = DenseEncoder.of(loaded, run.embedding, run.device)
    yield from dense.warn()
    yield from _warnings(run, loaded, dense, name)
    decoder = yield from _decoder(run, path, loaded, name)
    size = fine_cell(loaded.backbone, run.probe.config.decoder) if decoder else None
    every = with_all_maps(dense, dense.embedder, decoder, size)
    own = yield from _scores(run, every, name)
    if own is None:
        return None
    cost = cost_of(dense, run.probe.roles.taught[0].cases[0])
    key = _likeness(loaded, dense, size)
    for seed in range(len(run.randoms.setdefault(key, [])), run.probe.config.random):
        other = random_like(loaded, dense, run.probe.config.seed + seed, size)
        scores = yield from _scores(run, other, f"{name}, random weights {seed + 1}")
        if scores is None:
            return None
        run.randoms[key].append(scores)
    randoms = run.randoms[key]
    rows = list(_rows(name, "own", own, run.probe))
    for number, scores in enumerate(randoms, 1):
        rows += _rows(name, f"random {number}", scores, run.probe)
    card = loaded.card
    entry = {
        "name": name,
        "path": str(path),
        "encoder_id": loaded.encoder_id,
        "method": card.get("method"),
        "backbone": card["backbone"]["name"],
        "steps": card.get("steps"),
        "main": _main(own),
        "features": [
            scores.report([r[i] for r in randoms]) for i, scores in enumerate(own)
        ],
        "licence": licence_words(card) if "licence" in card else None,
        "cost": cost,
        "seconds": round(time.monotonic() - began, 1),
        "scores": own,
    }
    return entry, rows


def _decoder(
    run: _Run, path: Path, loaded: LoadedEncoder, name: str
) -> Job[Decoder | None]:
    """The decoder that came with an encoder, where it is asked for and fits."""
    if not run.probe.config.decoder:
        return None
    saved = load_decoder(path)
    if saved is None:
        yield Note(f"{name} comes without a decoder: its maps alone are probed.")
        return None
    made = features_decoder(loaded.backbone)
    if fill_decoder(made, saved, (), path).new:
        yield Note(
            f"the decoder of {name} does not stand on the maps of its encoder: these "
            "alone are probed.",
            "warning",
        )
        return None
    return made


def _likeness(loaded: LoadedEncoder, dense: DenseEncoder, cell: Index | None) -> str:
    """Encoders of one likeness have the same networks with random weights."""
    card, learnt = loaded.card, dense.learnt.spacing
    kept = card.get("embedding") or {}
    heads = [card.get("method"), card.get("method_config")] if kept.get("heads") else []
    return config_hash(
        card["backbone"], list(dense.window), heads, list(cell or ()),
        None if learnt is None else learnt.to_dict(),
    )  # fmt: skip


def _main(scores: Sequence[Scores]) -> str:
    """The set that stands for an encoder: all its maps."""
    names = [s.features for s in scores]
    return "all maps" if "all maps" in names else names[0]


def _scores(run: _Run, encoder: DenseEncoder, name: str) -> Job[list[Scores] | None]:
    source = EncoderSource(name, encoder, run.folder)
    try:
        found = yield from run.probe.run(source)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(
            f"not enough memory on {encoder.device} for {name}; take a smaller "
            "--window, or another --device."
        ) from error
    return None if found is None else list(found)


def with_all_maps(
    dense: DenseEncoder,
    embedder: Embedder,
    decoder: Decoder | None = None,
    cell: Index | None = None,
) -> DenseEncoder:
    """An encoder that gives every map it has, and what heads and a decoder make."""
    maps = AllMaps(embedder, decoder, cell or (1, 1, 1)).to(dense.device).eval()
    return replace(dense, embedder=maps)


def random_like(
    loaded: LoadedEncoder, dense: DenseEncoder, seed: int, cell: Index | None = None
) -> DenseEncoder:
    """The same network, heads included, with random weights.

    Args:
        loaded: Whose architecture.
        dense: The encoder as it embeds.
        seed: Other seeds are other networks.
        cell: With a decoder, means over so many voxels (z, y, x) of it; None: without.
    """
    card = loaded.card
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_APART + seed)
        backbone = build(card["backbone"]["name"], card["backbone"]["config"]).eval()
        embedder = Embedder(backbone, dense.embedder.maps)
        if (card.get("embedding") or {}).get("heads"):
            method = METHODS.get(card["method"])
            settings: Any = from_dict(method.Config, card["method_config"])
            embedder = method(backbone, settings).embedder()
        decoder = features_decoder(backbone) if cell else None
    other = with_all_maps(dense, embedder, decoder, cell)
    return replace(other, encoder_id=encoder_id(embedder.backbone))


def _warnings(
    run: _Run, loaded: LoadedEncoder, dense: DenseEncoder, name: str
) -> Job[None]:
    """What makes the figures of an encoder flatter or say less."""
    if early := stopped_words(loaded.card):
        yield Note(f"the training of {name} was {early}.", "warning")
    seen = set(loaded.card.get("trained_on") or ())
    cases = [c for p in run.probe.roles.judged for c in p.cases]
    count = sum(c.card.source_hash in seen for c in cases)
    if count:
        what = f"{name} has seen {count} of {len(cases)} judged scans in training"
        labels = loaded.card.get("kind") not in (None, "encoder")
        if labels:
            yield Note(f"{what}, with labels: its figures flatter it.", "warning")
        else:
            yield Note(f"{what}, without their labels.")
    if run.store.preprocessing != dense.preprocessing:
        yield Note(
            f"{name} learnt from scans prepared differently from {run.store.path}; it "
            "may know more than is shown here.",
            "warning",
        )


def _rows(
    name: str, weights: str, scores: Sequence[Scores], probe: Probe
) -> Iterator[dict[str, Any]]:
    """One row per feature set, measure, patient and label."""
    names = _label_names(probe)
    for each in scores:
        for measure, patient, place, value in each.cells():
            yield {
                "encoder": name, "weights": weights, "features": each.features,
                "measure": measure, "patient": patient, "label": names[place],
                "value": round(value, 6),
            }  # fmt: skip


def _label_names(probe: Probe) -> list[str]:
    if isinstance(probe, ScanProbe):
        return list(probe.labels)
    known = probe.taught[0].case.store.label_names
    return [
        "background" if v == 0 else known.get(v, f"label {v}") for v in probe.labels
    ]


def _told(
    probe: Probe, store: Store, config: ProbeConfig, entries: list[dict[str, Any]],
    none: Sequence[Scores],
) -> dict[str, Any]:  # fmt: skip
    """The result but for its rows."""
    roles, names = probe.roles, _label_names(probe)
    several = isinstance(probe, ScanProbe) and probe.several
    result: dict[str, Any] = {
        "kind": "labels" if isinstance(probe, VoxelProbe) else "classes",
        "store": str(store.path),
        "store_hash": store.hash,
        "settings": to_dict(config),
        "labels": names,
        "chance": 0.5 if several else 1 / max(len(names), 1),
        "taught": [p.name for p in roles.taught],
        "judged": [p.name for p in roles.judged],
        "whom": roles.whom,
        "no_network": [scores.report(()) for scores in none],
    }
    for entry in entries:
        entry.update(verdict(entry, result))
    order = sorted(entries, key=lambda e: -(e["value"] or 0.0))
    mains = [next(s for s in e.pop("scores") if s.features == e["main"]) for e in order]
    result["encoders"] = order
    result["verdict"] = order[0]["verdict"]
    if len(order) > 1:
        behind = [mains[0].figure("linear", [main]) for main in mains[1:]]
        for entry, figure in zip(order[1:], behind, strict=True):
            entry["behind"] = figure.to_dict()
        result["ahead"] = behind[0].to_dict()
        result["verdict"] = best_of(order, behind[0])
    return result


def short_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each encoder, all different."""
    folders = [p.parent if p.name == "model" else p for p in paths]
    short = [p.stem if p.is_file() else p.resolve().name for p in folders]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, paths, strict=True)
    ]
