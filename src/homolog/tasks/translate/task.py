"""The translate task: make one channel of a case from others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from homolog.backbones.base import Backbone
from homolog.config import ConfigError, as_in, option
from homolog.errors import UnusableInput
from homolog.events import Job, Note, drain
from homolog.feed.reading import CaseRef, grid_of
from homolog.geometry.anisotropy import thick_axis
from homolog.metrics.images import (
    HIGHER_IS_BETTER,
    IMAGE_METRICS,
    image_scores,
    nmse,
    psnr,
)
from homolog.nn.decoders import suited_decoder
from homolog.scans.volume import Volume
from homolog.sliding.blending import slices_at_once
from homolog.sliding.sliding import SlidingValues, slide_values
from homolog.sliding.windows import SlidingConfig
from homolog.store.card import Card
from homolog.store.preprocess import (
    ChannelLevels,
    in_network_units,
    restore_values,
)
from homolog.tasks import PRETRAINED
from homolog.tasks.base import (
    FACTS,
    LearnedConfig,
    LearnedTask,
    PredictOptions,
    TaskModule,
    Trained,
)
from homolog.tasks.segment.network import (
    SLICES_VOXELS,
    Normalise,
    check_scan,
    choose_window,
    is_slicewise,
    prepared_for,
    smallest_window,
    spec_index,
    useful_flips,
)
from homolog.tasks.segment.task import (
    SLICE_LIMITS,
    SegmentConfig,
    intensity_changes,
)
from homolog.tasks.translate.network import (
    TranslateModule,
    TranslateNetwork,
    Translation,
    at_scale,
    channels_of,
    low_dose,
    translation_of,
)
from homolog.views.view import Anchor, ViewSpec
from homolog.words import counted, listed

if TYPE_CHECKING:
    from homolog.recipes import Sources

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 1500,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "validate_every": 300,
        },
        "pretrained": PRETRAINED["cpu"],
    },
    "gpu": {
        "backbone": {"name": "swin"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 4e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
        "pretrained": PRETRAINED["gpu"],
    },
}

# Recipes as the papers have them; what is not printed is ours, see SOURCES.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "s2dc": {
        "task": {"window": [96, 96, 96]},
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 20_000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
}

SOURCES: Mapping[str, Sources] = {
    "s2dc": {
        "paper: 4.2, Swin UNETR; 96^3 as in pretraining": "backbone.name task.window",
        "code": "backbone.feature_size backbone.use_v2",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
}
# Longest side and most voxels of a window chosen by itself, of volumes.
_LIMITS = {"cpu": (96, 64**3), "cuda": (96, 96**3)}
# What a model is compared with, and the widths of the filter (voxels) that are tried.
MODEL, GIVEN, FILTERED = "model", "input", "gaussian"
_WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class TranslateConfig(LearnedConfig):
    """How an image is learnt from others of the same case."""

    target: str | int = option(
        "", "name or number of the channel that is made; empty: the last one"
    )
    inputs: str | int | tuple[str | int, ...] = option(
        "", "channels it is made from, parted by commas; empty: all but the target"
    )
    dose: float = option(
        0.0,
        "dose reduction factor: the target is made from a low dose of itself, which is "
        "simulated by keeping each of its counts with the chance 1 / dose; 0: none",
        minimum=0.0,
    )
    counts: float = option(
        200.0,
        "counts per voxel and unit of value at full dose, for the simulated low dose",
        minimum=1e-6,
    )
    residual: str = option(
        "auto",
        "what is learnt is added to the first input; auto: for low doses",
        choices=("auto", "yes", "no"),
        advanced=True,
    )
    ssim: float = option(
        0.0, "weight of structural similarity beside the mean error", minimum=0.0
    )
    window: tuple[int, int, int] | None = as_in(SegmentConfig, "window")
    rotate_deg: float = as_in(
        SegmentConfig, "rotate_deg", default=10.0, help="largest rotation about z"
    )
    scale: float = as_in(SegmentConfig, "scale", default=0.1)
    flip: tuple[float, float, float] = as_in(
        SegmentConfig,
        "flip",
        default=(0.0, 0.0, 0.5),
        help="probability of a mirrored crop along z, y, x",
    )
    intensity: float = as_in(
        SegmentConfig,
        "intensity",
        default=0.0,
        help="strength of random intensity changes of the input; 0: none",
    )
    overlap: float = as_in(SegmentConfig, "overlap")

    @property
    def seen(self) -> tuple[str, ...]:
        """The inputs as texts; none: all but the target."""
        told = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        parts = [part for one in told for part in str(one).split(",")]
        return tuple(part.strip() for part in parts if part.strip())

    def __post_init__(self) -> None:
        if 0 < self.dose <= 1:
            raise ConfigError(f"dose must be above 1, or 0 for none, got {self.dose}.")
        if self.dose > 0 and self.inputs != "":
            raise ConfigError("with dose the target itself is the input.")


# Paper: S2DC Table 6.
class Translate(LearnedTask):
    """Image to image by the networks that segment, with one value per voxel.

    One sequence of a case from others (T1 to T2), or a full dose from a simulated low
    one. Values of CT and PET are made in their unit. An MR scan's have none: each scan
    is taken relative to its own mean and spread, and what is made has those of a
    typical scan of the training.

    Source: Tang et al., S2DC, section 4.2, Tables 5 and 6 (Swin UNETR).
    Differs from the paper: which tells neither loss nor augmentation nor normalisation;
        the reduced dose is simulated by thinning (UDPET has scans of real low doses).
    """

    Config: ClassVar[type] = TranslateConfig
    title: ClassVar[str] = "Image to image"
    best_metric: ClassVar[str] = "psnr"
    takes_label_maps: ClassVar[bool] = False
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {**RECIPES, **PUBLISHED}
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    lacking: ClassVar[str] = (
        "translate needs cases of several channels (homolog prepare: nnU-Net's "
        "NAME_0000 and NAME_0001, or a manifest with image a|b) and the names of "
        "--set target=... and inputs=...; or --set dose=50 with one channel of PET"
    )

    config: TranslateConfig

    def usable(self, card: Card) -> bool:
        """It has the channels."""
        config = self.config
        return (
            channels_of(card, config.seen, str(config.target), config.dose) is not None
        )

    def why_none(self, cards: Sequence[Card]) -> str:
        """As ``lacking``, and which channels there are."""
        several = next((card for card in cards if card.channels > 1), None)
        if several is None:
            return self.lacking
        names = [n or str(i) for i, n in enumerate(several.channel_names)]
        wanted = listed([t for t in (str(self.config.target), *self.config.seen) if t])
        return (
            f"its cases have the channels {listed(names)}, translate was to make and "
            f"see {wanted or 'all'} (--set target=... and inputs=...)."
        )

    def channels(self, card: Card) -> int:
        """The inputs alone."""
        config = self.config
        found = channels_of(card, config.seen, str(config.target), config.dose)
        return len(found[0]) if found else card.channels

    def unclipped(self, spec: Mapping[str, Any]) -> Sequence[int]:
        """The target: what is brightest in it must be made, too."""
        return (Translation.of(spec).target,)

    def describe(
        self, cases: Sequence[CaseRef], backbone: Backbone, device: torch.device
    ) -> dict[str, Any]:
        """Window, channels, and what is made of what."""
        backbone = backbone.planar()
        slicewise = backbone.spatial_dims == 2
        config, cards = self.config, [case.card for case in cases]
        told = translation_of(
            cards, config.seen, str(config.target), config.dose, config.counts
        )
        window = config.window or self._window(cases, backbone, device)
        backbone.check_size(window)
        levels = [cards[0].levels[i] for i in told.inputs]
        spacing, shape = grid_of(cases)
        spec: dict[str, Any] = {
            "window": list(window),
            "across": None if min(shape) == 1 else thick_axis(spacing),
            "divisor": list(backbone.size_divisor),
            "smallest": [
                min(a, b)
                for a, b in zip(smallest_window(backbone), window, strict=True)
            ],
            "overlap": config.overlap,
            "slicewise": slicewise,
            "channels": len(levels),
            "channel_names": [one.name for one in levels],
            "channel_modalities": [one.modality for one in levels],
            "modalities": sorted({one.modality for one in levels}),
            "flip": list(config.flip),
            "translation": told.to_dict(),
            "residual": config.residual == "yes"
            or (config.residual == "auto" and told.lowers),
        }
        return spec

    def _window(
        self, cases: Sequence[CaseRef], backbone: Backbone, device: torch.device
    ) -> tuple[int, int, int]:
        flat = backbone.spatial_dims == 2
        limits = SLICE_LIMITS if flat else _LIMITS
        side, voxels = limits.get(device.type, limits["cuda"])
        shapes = [case.card.shape for case in cases]
        return choose_window(
            [(1, h, w) for _, h, w in shapes] if flat else shapes,
            backbone.size_divisor,
            smallest_window(backbone),
            side=side,
            voxels=voxels,
            spacing_mm=None if flat else grid_of(cases)[0],
        )

    def network(self, backbone: Backbone, spec: Mapping[str, Any]) -> TranslateNetwork:
        """The decoder that fits the encoder's kind, with one channel out."""
        backbone = backbone.planar()
        decoder = suited_decoder(backbone, 1, int(spec["channels"]))
        return TranslateNetwork(backbone, decoder, residual=bool(spec["residual"]))

    def module(self, network: nn.Module, spec: Mapping[str, Any]) -> TaskModule:
        """Mean absolute error on crops of the window's size."""
        assert isinstance(network, TranslateNetwork)
        config = self.config
        across = spec.get("across")
        turns = [0.0, 0.0, 0.0]
        turns[across or 0] = config.rotate_deg
        z, y, x = turns
        view = ViewSpec(
            size=spec_index(spec, "window"),
            place=Anchor(),
            translate=(0.05, 0.05, 0.05),
            rotate_deg=(z, y, x),
            scale=(1.0 / (1.0 + config.scale), 1.0 + config.scale),
            flip=config.flip,
        )
        return TranslateModule(
            network, view, Translation.of(spec), ssim=config.ssim,
            changes=intensity_changes(config.intensity), average=config.average,
        )  # fmt: skip

    def targets(
        self, cases: Sequence[CaseRef], spec: Mapping[str, Any]
    ) -> list[list[float]]:
        """Centre and spread of each case's target, as the store normalises it."""
        number = Translation.of(spec).target
        levels = [case.card.levels[number].intensity for case in cases]
        return [[one.centre, one.spread] for one in levels]

    def remark(self, spec: Mapping[str, Any], chosen: int) -> str:
        """What is made of what, and whether its values have a unit."""
        told = Translation.of(spec)
        name = told.name or told.modality
        if told.lowers:
            return (
                f"the full dose of {name} is learnt from 1/{told.dose:g} of it, which "
                f"is simulated by Poisson thinning at {told.counts:g} counts per voxel "
                "and unit of value; no scan of a real low dose is looked at."
            )
        names = [n or f"channel {i}" for i, n in zip(
            told.inputs, spec["channel_names"], strict=True)]  # fmt: skip
        unit = (
            "in its own unit"
            if told.absolute
            else "relative to each scan's own mean and spread, as it has no unit"
        )
        return f"{name} is made from {listed(names)}, {unit}."

    def effort(self, card: Card, spec: Mapping[str, Any]) -> float:
        """Voxels of the scan by those of a crop."""
        return math.prod(card.shape) / math.prod(spec_index(spec, "window"))

    def validate(
        self,
        model: Trained,
        cases: Iterable[CaseRef],
        look: Callable[..., None] | None = None,
        share: float = 1.0,
    ) -> dict[str, float]:
        """``psnr``, ``nmse`` and ``mae``, means over cases; see ``metrics.images``."""
        rows = []
        for case in cases:
            pair = _Pair.of(case, model.spec)
            made = drain(translated(model, pair.data, pair.levels))
            assert made is not None
            predicted = pair.in_units(made.values[0].numpy())
            if show := getattr(look, "images", None):
                show(case, pair.seen()[0], predicted, pair.truth)
            rows.append(
                {
                    "psnr": psnr(predicted, pair.truth),
                    "nmse": nmse(predicted, pair.truth),
                    "mae": float(np.abs(predicted - pair.truth).mean()),
                }
            )
        return {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}

    def score(
        self,
        model: Trained,
        case: CaseRef,
        *,
        flips: Sequence[int] = (),
        tolerance_mm: float = 1.0,
    ) -> Job[list[dict[str, Any]]]:
        """PSNR, SSIM, NMSE and mean error of the model, beside two that learn nothing.

        These are the (first) input itself, and the input under a Gaussian filter: of
        five widths the one of the best PSNR on this very case. Both are brought to the
        target's values as a network's output is, by mean and spread.
        """
        pair = _Pair.of(case, model.spec)
        made = yield from translated(model, pair.data, pair.levels, flips=flips)
        if made is None:
            return []
        given = pair.in_units(pair.seen()[0])
        smooth = max(
            (ndimage.gaussian_filter(given, _sigma(given, width)) for width in _WIDTHS),
            key=lambda image: psnr(image, pair.truth),
        )
        images = {
            MODEL: pair.in_units(made.values[0].numpy()),
            GIVEN: given,
            FILTERED: smooth,
        }
        return [
            {"method": name, **image_scores(image, pair.truth)}
            for name, image in images.items()
        ]

    def columns(self, spec: Mapping[str, Any]) -> Sequence[str]:
        """Case, method, and the metrics."""
        return ("case", "method", *IMAGE_METRICS)

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over cases of each method; ``mean`` is the model's."""
        cases = list(dict.fromkeys(row["case"] for row in rows))
        methods: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == name]
            methods[name] = {m: float(np.mean([r[m] for r in own])) for m in own[0]
                             if m in IMAGE_METRICS}  # fmt: skip
        worst = {}
        mine = [row for row in rows if row["method"] == MODEL]
        for metric in IMAGE_METRICS if mine else ():
            choose = min if HIGHER_IS_BETTER[metric] else max
            row = choose(mine, key=lambda r: r[metric])
            worst[metric] = {"case": row["case"], "value": row[metric]}
        return {
            "cases": len(cases), "mean": methods.get(MODEL, {}), "methods": methods,
            "worst": worst, "labels": {},
        }  # fmt: skip

    def report(self, result: Mapping[str, Any]) -> list[str]:
        """A row per method."""
        lines = [
            counted(result["cases"], "case"),
            f"{'':<10}{'PSNR dB':>9}{'SSIM':>9}{'NMSE':>9}{'MAE':>11}",
        ]
        for name, means in result["methods"].items():
            lines.append(
                f"{name:<10}{means['psnr']:>9.2f}{means['ssim']:>9.4f}"
                f"{means['nmse']:>9.4f}{means['mae']:>11.4g}"
            )
        return [
            *lines,
            "data range of PSNR and SSIM: that of each true image, largest less least "
            "value; input and Gaussian filter (the best of five widths) learn nothing",
        ]

    def run(
        self,
        volume: Volume,
        model: Trained,
        options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    ) -> Job[Volume | None]:
        """The image made of a scan, on its own grid; None when stopped.

        Raises:
            UnusableInput: Another modality or number of channels than learnt from.
        """
        told, spec = Translation.of(model.spec), model.spec
        check_scan(model, volume, options.modality)
        kinds = spec["channel_modalities"]
        kind = options.modality or (kinds[0] if len(kinds) == 1 else None)
        prepared = yield from prepared_for(model, volume, kind)
        levels = prepared.levels
        if told.lowers:
            levels = (at_scale(levels[0], told.centre, told.spread),)
        made = yield from translated(
            model, prepared.data, levels, flips=useful_flips(model, options.flips),
            overlap=options.overlap, windows=options.windows,
        )  # fmt: skip
        if made is None:
            return None
        if not told.absolute:
            yield Note(
                f"{volume.name}: {told.modality} values have no unit; those made have "
                "the mean and spread of a typical scan of the training."
            )
        values = told.in_units(made.values.numpy(), told.centre, told.spread)
        found = restore_values(values, prepared, volume)
        facts = {"windows": made.windows, "window": list(made.window)}
        return Volume(
            found.data, found.affine, found.name, told.modality,
            {**found.meta, FACTS: facts},
        )  # fmt: skip


def translated(
    model: Trained,
    data: NDArray[np.int16],
    levels: Sequence[ChannelLevels],
    *,
    flips: Sequence[int] = (),
    overlap: float | None = None,
    windows: str | None = None,
) -> Job[SlidingValues | None]:
    """What a translator makes of a prepared scan, in its own normalised values.

    Args:
        model: A trained translator.
        data: (C, D, H, W) int16, the inputs.
        levels: What their numbers mean.
        flips: Axes whose mirrorings are averaged.
        overlap: Of neighbouring windows; None takes the model's.
        windows: As for ``label_stored``.
    """
    spec = model.spec
    window, slicewise = spec_index(spec, "window"), is_slicewise(model)
    if slicewise:
        voxels = SLICES_VOXELS.get(model.device.type, SLICES_VOXELS["cuda"])
        window = slices_at_once(data.shape[1], window, voxels), *window[1:]
    free = getattr(getattr(model.network, "encoder", None), "free_divisor", None)
    config = SlidingConfig(
        window=window,
        divisor=spec_index(spec, "divisor"),
        smallest=spec_index(spec, "smallest"),
        overlap=spec["overlap"] if overlap is None else overlap,
        slicewise=slicewise,
        batch=None,
        flips=tuple(flips),
        fill=tuple(one.fill for one in levels),
        precision=model.precision,
        follow=None if slicewise or windows == "trained" else free,
    )
    found = yield from slide_values(
        model.network,
        torch.from_numpy(np.ascontiguousarray(data)),
        channels=1,
        config=config,
        device=model.device,
        normalise=Normalise(levels, model.device),
    )
    return found


@dataclass(frozen=True, eq=False)
class _Pair:
    """A case as a translator is tried on it.

    Attributes:
        data: (C, D, H, W) int16, the inputs.
        levels: What their numbers mean.
        truth: (D, H, W) the target in units of value.
        centre: By which what is made becomes such values,
        spread: likewise.
        told: What the model makes of what.
    """

    data: NDArray[np.int16]
    levels: tuple[ChannelLevels, ...]
    truth: NDArray[np.float32]
    centre: float
    spread: float
    told: Translation

    @classmethod
    def of(cls, case: CaseRef, spec: Mapping[str, Any]) -> _Pair:
        """Read from the store; a low dose is simulated, always alike.

        Raises:
            UnusableInput: The case has other channels than the model's.
        """
        told, card = Translation.of(spec), case.card
        if max(told.target, *told.inputs) >= card.channels:
            raise UnusableInput(
                f"case {card.id!r} has {counted(card.channels, 'channel')}, not those "
                "of the model."
            )
        stored = np.asarray(case.store.image(card.id)[:])
        own = card.levels[told.target]
        truth = own.values(stored[told.target])
        centre, spread = told.own_scale(own)
        if told.lowers:
            low = low_dose(truth, told, card.id)
            step = max(float(low.max()), 1e-6) / 32767
            data = np.rint(low / step).astype(np.int16)[None]
            one = at_scale(own, told.centre, told.spread)
            numbers = ChannelLevels(own.name, own.modality, step, 0.0, one.intensity)
            return cls(data, (numbers,), truth, centre, spread, told)
        inputs = list(told.inputs)
        levels = tuple(card.levels[i] for i in inputs)
        return cls(stored[inputs], levels, truth, centre, spread, told)

    def seen(self) -> NDArray[np.float32]:
        """(C, D, H, W) the inputs as the network sees them."""
        return in_network_units(self.data, self.levels)

    def in_units(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised values of the target in units of value."""
        return self.told.in_units(values, self.centre, self.spread)


def _sigma(image: NDArray[Any], width: float) -> list[float]:
    """Of a Gaussian of a width in voxels; single slices are not filtered across."""
    return [width if n > 1 else 0.0 for n in image.shape]
