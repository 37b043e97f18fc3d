"""The network of a translator, what it is to make of which channels, how it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.losses import SSIMLoss
from numpy.typing import NDArray
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.errors import UnusableInput
from homolog.losses.similarity import exact_products
from homolog.store.card import Card
from homolog.store.preprocess import ChannelLevels, Intensities
from homolog.tasks.base import TaskModule
from homolog.tasks.segment.network import SegmentNetwork
from homolog.views.view import Intensity, Same, Views, ViewSpec

# Values of these have a unit: what a network makes is in it, whatever the scan.
ABSOLUTE = ("CT", "PET")
TARGET, INPUT = "target", "input"
# Voxels of the window of the SSIM term, odd; no more than the crop has.
_SSIM_WINDOW = 11
_SSIM_LEAST = 3


@dataclass(frozen=True)
class Translation:
    """What is made of what.

    Attributes:
        inputs: Channels of a case that the network sees.
        target: The channel it is to make.
        name: Of the target.
        modality: Of the target.
        absolute: Its values have a unit, and are learnt in it; else each scan's are
            taken relative to its own mean and spread.
        centre: Value that becomes 0: the median of the scans learnt from.
        spread: Values per normalised unit, likewise.
        dose: Dose reduction factor that is simulated; 0: none.
        counts: Counts per voxel and unit of value at full dose.
        positive: No value below 0 is made: no scan learnt from has any worth keeping.
    """

    inputs: tuple[int, ...]
    target: int
    name: str
    modality: str
    absolute: bool
    centre: float
    spread: float
    dose: float = 0.0
    counts: float = 0.0
    positive: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "inputs": list(self.inputs)}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Translation:
        """As a model's spec has it."""
        told = dict(spec["translation"])
        return cls(**{**told, "inputs": tuple(told["inputs"])})

    @property
    def lowers(self) -> bool:
        """Whether the input is a low dose of the target, simulated."""
        return self.dose > 0

    def in_units(
        self, values: NDArray[np.float32], centre: float, spread: float
    ) -> NDArray[np.float32]:
        """Normalised values (any shape) in units of value."""
        found = values * np.float32(spread) + np.float32(centre)
        least = 0.0 if self.positive else -np.inf
        return np.asarray(found.clip(least), dtype=np.float32)

    def own_scale(self, levels: ChannelLevels) -> tuple[float, float]:
        """Centre and spread by which the target of one scan is normalised."""
        if self.absolute:
            return self.centre, self.spread
        return levels.intensity.centre, levels.intensity.spread


def channel_at(card: Card, told: str) -> int | None:
    """Number of the channel of a case that is called so, or has that number."""
    names = [name.casefold() for name in card.channel_names]
    if told.casefold() in names:
        return names.index(told.casefold())
    if told.isdigit() and int(told) < card.channels:
        return int(told)
    return None


def channels_of(
    card: Card, inputs: Sequence[str], target: str, dose: float
) -> tuple[tuple[int, ...], int] | None:
    """Which channels of a case are seen and which is to be made; None: it lacks some.

    Args:
        card: Of the case.
        inputs: Names or numbers; none: all but the target.
        target: Name or number; empty: the last one.
        dose: Above 0 the target itself is the input.
    """
    wanted = channel_at(card, target) if target else card.channels - 1
    if wanted is None:
        return None
    if dose > 0:
        return (wanted,), wanted
    if inputs:
        found = [channel_at(card, part) for part in inputs]
        seen = tuple(n for n in found if n is not None)
        if len(seen) < len(found) or wanted in seen:
            return None
    else:
        seen = tuple(n for n in range(card.channels) if n != wanted)
    return (seen, wanted) if seen else None


def translation_of(
    cards: Sequence[Card],
    inputs: Sequence[str],
    target: str,
    dose: float,
    counts: float,
) -> Translation:
    """What a model is to make of what, from its cases.

    Raises:
        UnusableInput: The channels of the cases differ.
    """
    found = [channels_of(card, inputs, target, dose) for card in cards]
    first = found[0]
    assert first is not None
    odd = [card for card, one in zip(cards, found, strict=True) if one != first]
    if odd:
        raise UnusableInput(
            f"the channels of case {odd[0].id!r} are not those of {cards[0].id!r}."
        )
    seen, wanted = first
    levels = [card.levels[wanted] for card in cards]
    kind = levels[0].modality
    return Translation(
        inputs=seen,
        target=wanted,
        name=levels[0].name,
        modality=kind,
        absolute=dose > 0 or kind in ABSOLUTE,
        centre=float(np.median([one.intensity.centre for one in levels])),
        spread=float(np.median([one.intensity.spread for one in levels])),
        dose=dose,
        counts=counts,
        positive=kind != "CT" and all(one.intensity.low >= 0 for one in levels),
    )


def thinned(
    values: Tensor, dose: float, counts: float, generator: torch.Generator | None = None
) -> Tensor:
    """A scan of a ``dose`` times lower dose, simulated from the scan itself.

    A voxel's value is taken for a whole number of counts, each of which is kept with
    the chance 1 / dose: what is left of a Poisson number of counts is again one. Values
    below 0 count as 0.

    This is a simulation: counts in an image are not those of a detector, and what a
    reconstruction makes of few of them (streaks, noise that neighbours share) is not in
    it.

    Args:
        values: Any shape, in units of value.
        dose: Dose reduction factor, above 1.
        counts: Counts per voxel and unit of value at full dose.
        generator: Of the random numbers; None: torch's own.
    """
    whole = (values.clamp_min(0) * counts).round()
    chance = torch.full_like(whole, 1.0 / dose)
    kept = torch.binomial(whole, chance, generator=generator)
    return kept * (dose / counts)


def at_scale(one: ChannelLevels, centre: float, spread: float) -> ChannelLevels:
    """The numbers of a channel with another scale, and all its values at or above 0."""
    most = one.scale * 32767 + one.offset
    return replace(one, intensity=Intensities(0.0, most, centre, spread))


class TranslateNetwork(SegmentNetwork):
    """A segmentation network with one output: the target's normalised value.

    Args:
        encoder: 3D or 2D backbone.
        decoder: With one channel out.
        residual: What comes out is added to the first channel in.
    """

    def __init__(
        self, encoder: Backbone, decoder: nn.Module, *, residual: bool = False
    ) -> None:
        super().__init__(encoder, decoder)
        self.residual = residual
        if residual:  # it begins as the input itself
            for weight in self.head.parameters():
                nn.init.zeros_(weight)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 1, D, H, W)."""
        made = super().forward(image)
        return made + image[:, :1] if self.residual else made


# Paper: S2DC Table 5.
class TranslateModule(TaskModule):
    """Mean absolute error on crops, and a term of structural similarity.

    Args:
        network: What learns.
        spec: The crops.
        translation: What is made of what.
        changes: Random intensity changes of the input.
        ssim: Weight of the SSIM term; 0: none.
        average: Momentum of the weight average; 0 keeps none.

    Source: S2DC, section 4.2 (Swin UNETR; image to image, low dose to full dose).
    Differs from the paper: which tells no loss; L1 is usual, SSIM is a setting.
    """

    network: TranslateNetwork

    def __init__(
        self,
        network: TranslateNetwork,
        spec: ViewSpec,
        translation: Translation,
        *,
        changes: Intensity,
        ssim: float = 0.0,
        average: float = 0.0,
    ) -> None:
        super().__init__(network, average)
        self.spec, self.translation, self.weight = spec, translation, ssim
        self.changes = changes

    def views(self) -> dict[str, ViewSpec]:
        """One crop as it is, and the same with the changes an input may undergo."""
        seen = ViewSpec(self.spec.size, place=Same(TARGET), intensity=self.changes)
        return {TARGET: self.spec, INPUT: seen}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``l1``, and ``ssim`` where it counts."""
        told = self.translation
        view = views[TARGET]
        assert view.target is not None
        given = views[INPUT].flat()
        seen = torch.stack([given[:, channel] for channel in told.inputs], 1)
        truth = view.flat()[:, told.target, None]
        own = view.target.repeat_interleave(view.image.shape[1], 0)
        own_centre, own_spread = own.float()[:, :, None, None, None, None].unbind(1)
        if told.absolute:
            units = truth * own_spread + own_centre
            truth = (units - told.centre) / told.spread
            if told.lowers:
                low = thinned(units, told.dose, told.counts)
                seen = (low - told.centre) / told.spread
        made = self.network(seen)
        valid = view.valid.flatten(0, 1)[:, None]
        with torch.autocast(made.device.type, enabled=False):
            made = made.float()
            gap = (made - truth).abs() * valid
            found = {"l1": gap.sum() / valid.sum().clamp_min(1)}
            if self.weight:
                found["ssim"] = self.weight * _unlike(made, truth, valid)
        return found


def _unlike(made: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """1 - SSIM of crops (B, 1, D, H, W), values brought to 0..1 by the truth's."""
    low, high = (f(truth.flatten(1), 1) for f in (torch.amin, torch.amax))
    place = (slice(None), *(None,) * 4)
    span = (high - low).clamp_min(1e-3)[place]
    pair = [(v - low[place]) / span * valid for v in (made, truth)]
    flat = truth.shape[2] < _SSIM_LEAST
    if flat:  # slices as images
        pair = [v.transpose(1, 2).flatten(0, 1) for v in pair]
    sides = pair[0].shape[2:]
    window = [min(_SSIM_WINDOW, n - 1 + n % 2) for n in sides]
    # on the device, or the loss would copy its window up in every step; exact, for its
    # variances are small differences of large means
    with made.device, exact_products(made.device.type):
        term: Tensor = SSIMLoss(len(sides), win_size=window)(*pair)
    return term


def case_generator(name: str) -> torch.Generator:
    """Random numbers that belong to a case: the same whenever it is looked at."""
    seed = int.from_bytes(name.encode()[-7:].rjust(7, b"\0"), "little")
    return torch.Generator().manual_seed(seed)


def low_dose(
    values: NDArray[np.float32], translation: Translation, name: str
) -> NDArray[np.float32]:
    """``thinned`` of a whole scan, always alike.

    Paper: S2DC Table 6.
    """
    made = thinned(
        torch.from_numpy(np.ascontiguousarray(values)), translation.dose,
        translation.counts, case_generator(name),
    )  # fmt: skip
    return np.asarray(made.numpy())
