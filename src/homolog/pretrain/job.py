"""The pretraining job: build, train, preview, save the encoder with its card."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.config import from_dict, to_dict
from homolog.distributed import world
from homolog.drawing.pictures import as_bytes, beside, coloured, enlarge, grey
from homolog.errors import UnusableInput
from homolog.events import Job, Note, Saved, Stopped, without_stopped
from homolog.features.of_scans import fit_colours
from homolog.feed.batches import Feed, Pairing
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Index
from homolog.json_files import read_object
from homolog.label_names import join_labels, refuse_ignored, store_titles
from homolog.methods.base import Embedder, Method
from homolog.model_files.decoder import STEM, decoder_card
from homolog.model_files.encoder import encoder_id
from homolog.model_files.folder import save_model
from homolog.nn.optim import Pace, parameter_groups, prefix_factor
from homolog.pretrain.settings import (
    PretrainConfig,
    build_method,
    cases_of,
    find_partners,
    go_on_decoding,
    padding_note,
    partners_note,
    shares_note,
)
from homolog.store.card import Card
from homolog.store.learnt_spacing import sizes_note
from homolog.store.pairs import write_depths
from homolog.store.preprocess import in_units, inside, spread_sample
from homolog.store.store import Store
from homolog.training.config import TrainingConfig, TrainingResult
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
from homolog.training.stepping import autocast, resolve_precision
from homolog.training.validation import preview_look
from homolog.words import utc_now

# A slice of one scan beside its features in colours: does the network see anatomy?


Plane = tuple[int, int]

_MOST_WINDOWS = 64
# Of the time there is; the rest goes into colours and the file.
_SHARE_FOR_WINDOWS = 0.6
_AIR_BRIGHTNESS = 0.2
# Stages begin so much early, as phases of views do: shares of a run are rounded.
_AT_ONCE = 1e-9


# Paper: S2DC Fig. 7.
class SlicePreview:
    """Draws the same slice again and again while the encoder learns.

    Args:
        method: Its embedder is taken anew each time.
        cases: The first validation case is shown, else the middle one.
        device: Where the method is.
        precision: ``bf16`` for autocast, or ``fp32``.
    """

    def __init__(
        self,
        method: Method,
        cases: Sequence[CaseRef],
        device: torch.device,
        precision: str,
    ) -> None:
        held = [case for case in cases if case.card.split == "val"]
        self.case = held[0] if held else cases[len(cases) // 2]
        self.method, self.device, self.precision = method, device, precision
        self.window = _flattened(next(iter(method.views().values())).size, method)
        self._each_s = 0.0  # a window takes

    def __call__(
        self, done: int, left_s: float, most_s: float
    ) -> tuple[NDArray[np.uint8], str] | None:
        """The picture after ``done`` steps; None to wait until there is more time.

        Args:
            done: Steps done.
            left_s: Seconds there are now; the first picture is as large as they allow.
            most_s: What a picture should take at most.
        """
        card = self.case.card
        embedder = self.method.embedder().eval()
        frame = _Frame(card, self.window, embedder)
        if not self._each_s:
            self._measure(frame, embedder)
            grid = self._within(frame.whole, left_s)
        else:
            grid = self._within(frame.whole, most_s)
            if grid[0] * grid[1] * self._each_s > _SHARE_FOR_WINDOWS * left_s:
                return None
        frame.choose(grid)
        values = self._values(frame)
        began = time.monotonic()
        cells = self._cells(frame, embedder, values)
        self._each_s = max((time.monotonic() - began) / len(frame.starts), 1e-6)
        title = f"{card.id}: a slice and its features after {done} steps"
        return _drawn(values[0, frame.row], cells, card, frame.stride), title

    def _measure(self, frame: _Frame, embedder: Embedder) -> None:
        """Seconds a window takes; a network's first pass of a size is its slowest."""
        frame.choose((1, 1))
        values = self._values(frame)
        for _ in range(2):
            began = time.monotonic()
            self._cells(frame, embedder, values)
            self._each_s = max(time.monotonic() - began, 1e-6)

    def _within(self, whole: Plane, seconds: float) -> Plane:
        """How many windows along y and x there is time for, of those that cover all."""
        rows, columns = whole
        most = _SHARE_FOR_WINDOWS * seconds / self._each_s
        while rows * columns > min(max(most, 1), _MOST_WINDOWS):
            if rows >= columns:
                rows -= 1
            else:
                columns -= 1
        return rows, columns

    def _values(self, frame: _Frame) -> NDArray[np.float32]:
        """(C, D, H, W) of the frame in value units; beyond the scan the darkest."""
        card = self.case.card
        shape = tuple(b - a for a, b in frame.box)
        result = np.empty((card.channels, *shape), np.float32)
        for channel, one in zip(result, card.levels, strict=True):
            channel[:] = one.intensity.low
        known = [
            (max(a, 0), min(b, n))
            for (a, b), n in zip(frame.box, card.shape, strict=True)
        ]
        key = (slice(None), *(slice(a, b) for a, b in known))
        stored = np.asarray(self.case.store.image(card.id)[key], np.float32)
        place = tuple(
            slice(a - first, b - first)
            for (a, b), (first, _) in zip(known, frame.box, strict=True)
        )
        result[(slice(None), *place)] = in_units(stored, card.levels)
        return result

    def _cells(
        self, frame: _Frame, embedder: Embedder, values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Features (E, h, w) of the frame's slice; windows fade into each other."""
        levels = self.case.card.levels
        seen = np.stack(
            [one.intensity.normalise(v) for v, one in zip(values, levels, strict=True)]
        )
        total: NDArray[np.float32] | None = None
        weight = np.zeros(frame.cells, np.float32)
        for y, x in frame.starts:
            _, height, width = frame.window
            crop = np.ascontiguousarray(seen[:, :, y : y + height, x : x + width])
            found = self._embed(frame, embedder, torch.from_numpy(crop)[None])
            if total is None:
                total = np.zeros((found.shape[0], *frame.cells), np.float32)
            top, left = y // frame.stride[0], x // frame.stride[1]
            part = slice(top, top + found.shape[1]), slice(left, left + found.shape[2])
            fade = np.outer(*(_fading(n) for n in found.shape[1:]))
            total[:, part[0], part[1]] += found * fade
            weight[part] += fade
        assert total is not None
        total /= np.maximum(weight, 1e-6)
        return total

    def _embed(
        self, frame: _Frame, embedder: Embedder, image: torch.Tensor
    ) -> NDArray[np.float32]:
        """(1, C, D, H, W) -> all features joined on the finest grid, (E, h, w)."""
        with autocast(self.device, self.precision):
            maps = embedder(image.to(self.device))
        planes = []
        for name, features in maps.items():
            depth = embedder.stride(name)[0]
            index = min(frame.row // depth, features.shape[2] - 1)
            planes.append(features[:, :, index].float())
        size = max((tuple(p.shape[2:]) for p in planes), key=lambda s: s[0])
        joined = [
            torch.nn.functional.interpolate(p, size, mode="bilinear") for p in planes
        ]
        cells: NDArray[np.float32] = torch.cat(joined, 1)[0].cpu().numpy()
        return cells


class _Frame:
    """Which voxels are shown: windows side by side around the middle of the body.

    Attributes:
        window: Voxels (z, y, x) of a window.
        stride: Voxels (y, x) per cell of the finest feature.
        whole: Windows along y and x that would cover the body.
        box: First voxel and one past the last, per axis; may reach beyond the scan.
        row: The slice shown, counted from the box's first.
        starts: First voxel (y, x) of each window, counted from the box's corner.
        cells: Size (h, w) of the slice in cells.
    """

    def __init__(self, card: Card, window: Index, embedder: Embedder) -> None:
        strides = [embedder.stride(name) for name in embedder.maps]
        self.window = window
        self.stride = min(s[1] for s in strides), min(s[2] for s in strides)
        low, high = card.foreground
        self.middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
        # Neighbours share a quarter; all start on a common cell border.
        unit = [lcm(*(s[axis] for s in strides)) for axis in (1, 2)]
        self.step = [
            max(m, n * 3 // 4 // m * m) for n, m in zip(window[1:], unit, strict=True)
        ]
        sizes = [b - a for a, b in zip(low, high, strict=True)][1:]
        rows, columns = (
            1 + max(0, ceil((size - n) / step))
            for size, n, step in zip(sizes, window[1:], self.step, strict=True)
        )
        self.whole: Plane = rows, columns
        self.depth = card.shape[0]
        self.choose(self.whole)

    def choose(self, grid: Plane) -> None:
        """Take so many windows along y and x, centred."""
        sides = [
            (count - 1) * step + n
            for count, step, n in zip(grid, self.step, self.window[1:], strict=True)
        ]
        depth = self.window[0]
        first = min(max(self.middle[0] - depth // 2, 0), max(self.depth - depth, 0))
        self.row = self.middle[0] - first
        corner = [m - side // 2 for m, side in zip(self.middle[1:], sides, strict=True)]
        self.box = (
            (first, first + depth),
            *((a, a + side) for a, side in zip(corner, sides, strict=True)),
        )
        self.starts = list(
            itertools.product(
                *(range(0, n * s, s) for n, s in zip(grid, self.step, strict=True))
            )
        )
        self.cells = ceil(sides[0] / self.stride[0]), ceil(sides[1] / self.stride[1])


def _fading(count: int) -> NDArray[np.float32]:
    """Weights (count,) that fall evenly towards both ends."""
    place = np.arange(count, dtype=np.float32) + 0.5
    weights: NDArray[np.float32] = np.minimum(place, count - place)
    return weights


def _flattened(window: Index, method: Method) -> Index:
    """A third of the crop's depth, where that is legal: a slice needs no more."""
    depth, height, width = window
    divisor = method.encoder().size_divisor[0]
    if method.encoder().spatial_dims == 2:
        return window
    return max(divisor, depth // 3 // divisor * divisor), height, width


def _drawn(
    values: NDArray[np.float32],
    cells: NDArray[np.float32],
    card: Card,
    stride: Plane,
) -> NDArray[np.uint8]:
    """The slice (H, W) in value units, and its features (E, h, w) as colours."""
    body = inside(values, spread_sample(values[None, None]), card.modality == "CT")
    thin = body[stride[0] // 2 :: stride[0], stride[1] // 2 :: stride[1]]
    height, width = cells.shape[1:]
    mask = np.zeros((height, width), np.bool_)
    mask[: thin.shape[0], : thin.shape[1]] = thin[:height, :width]
    flat = cells[:, None]
    colours = fit_colours([flat], [mask[None]]).paint(flat)[:, 0]
    zoom, window = preview_look(card, (values.shape[0], values.shape[1]))
    left = grey(values, zoom, window)
    right: Any = coloured(colours, (zoom[0] * stride[0], zoom[1] * stride[1]))
    right = right[: left.shape[0], : left.shape[1]]
    light = enlarge(body, zoom)[: right.shape[0], : right.shape[1], None]
    right = right * (_AIR_BRIGHTNESS + (1 - _AIR_BRIGHTNESS) * light)
    return as_bytes(beside([left, right]))


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
    cases = cases_of(settings, stores)
    method = build_method(settings)
    if note := go_on_decoding(settings, method):
        yield Note(note)
    partners = find_partners(method, stores, cases, settings.seed)
    for sentence in list(_opening(settings, method, stores, cases, partners)):
        yield Note(sentence)
    if any(spec.depths for spec in method.views().values()):
        yield from write_depths([(case.store, case.card) for case in cases])
    feed = feed_of(settings, method, cases, partners, device)
    if note := shares_note(feed):
        yield Note(note)
    plan = settings.training
    precision = resolve_precision(plan.precision, device, method)
    training = train(
        method, feed, plan, folder=folder, device=device, seed=settings.seed,
        draw=SlicePreview(method, cases, device, precision),
        parameter_groups=groups_of(method, plan),
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


def groups_of(method: Method, plan: TrainingConfig) -> list[dict[str, Any]]:
    """Groups for the optimiser: rates of the method, a course for each stage if asked.

    Args:
        method: The trainable.
        plan: Weight decay, and whether every stage has a course of its own.

    Paper: Joint stages.
    """
    factor = prefix_factor(method.rate_factors())
    rises: tuple[float, ...] = (0.0,)
    if plan.restarts:
        ends = itertools.accumulate(phase.share for phase in method.phases())
        rises = (0.0, *(end - _AT_ONCE for end in list(ends)[:-1]))
    return parameter_groups(
        method,
        plan.weight_decay,
        pace=lambda name: Pace(factor(name), rises=rises, falls=plan.restarts),
    )


def feed_of(
    settings: PretrainConfig,
    method: Method,
    cases: Sequence[CaseRef],
    partners: Pairing | None,
    device: torch.device,
) -> Feed:
    """What a pretraining sees, batch by batch, as its settings say."""
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
        processes=settings.training.feed_processes,
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
    """The model folder: encoder, decoder, the heads of the embedder, and the card."""
    embedder, decoder = method.embedder(), method.dense_decoder()
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
        "decoder": None if decoder is None else decoder_card(decoder),
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
    extra = {"embedder": embedder.own_state()}
    if decoder is not None:
        extra[STEM] = decoder.state_dict()
    extra = {name: state for name, state in extra.items() if state}
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
