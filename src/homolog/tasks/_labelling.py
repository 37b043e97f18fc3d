"""A segmentation network on prepared voxels: the one way from int16 to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homolog.config import from_dict
from homolog.data.learnt_spacing import brought_note
from homolog.data.preprocess import (
    Intensities,
    Prepared,
    Preprocessing,
    prepare_volume,
)
from homolog.data.volume import Volume
from homolog.errors import UnusableInput
from homolog.events import Job, Note
from homolog.geometry.affine import Index
from homolog.tasks._base import Trained
from homolog.tasks._forward import SlidingConfig
from homolog.tasks._segmenter import spec_index
from homolog.tasks._sliding import SlidingResult, slide
from homolog.tasks._windows import slices_at_once

# Voxels of the slices that go through a slice-wise network together.
_SLICES_VOXELS = {"cpu": 80**3, "cuda": 128**3}


class Levels(Protocol):
    """What stored numbers mean; a Card and a Prepared are such."""

    @property
    def scale(self) -> float:
        """Value units per stored step."""
        ...

    @property
    def offset(self) -> float:
        """Value of a stored 0."""
        ...

    @property
    def intensity(self) -> Intensities:
        """How values are normalised."""
        ...


def label_stored(
    model: Trained,
    data: NDArray[np.int16],
    levels: Levels,
    *,
    flips: Sequence[int] = (),
    overlap: float | None = None,
    windows: str | None = None,
) -> Job[SlidingResult | None]:
    """Class indices of every voxel of a prepared scan.

    Args:
        model: A trained segmentation network.
        data: (C, D, H, W) int16 as the store keeps it.
        levels: The scan's card or what ``prepare_volume`` made.
        flips: Axes whose mirrorings are averaged.
        overlap: Of neighbouring windows; None takes the model's.
        windows: ``scan``: a scan that is not much larger than the window of training
            is one window, where the network takes any size; ``trained``: that of
            training, always; None: ``scan``.

    Returns:
        Labels as class indices; None when told to stop.
    """
    spec = model.spec
    window, slicewise = spec_index(spec, "window"), is_slicewise(model)
    if slicewise:
        kind = model.device.type
        voxels = _SLICES_VOXELS.get(kind, _SLICES_VOXELS["cuda"])
        window = slices_at_once(data.shape[1], window, voxels), *window[1:]
    config = SlidingConfig(
        window=window,
        divisor=spec_index(spec, "divisor"),
        smallest=spec_index(spec, "smallest"),
        overlap=spec["overlap"] if overlap is None else overlap,
        slicewise=slicewise,
        batch=4 if model.device.type == "cuda" else 1,
        flips=useful_flips(model, flips),
        fill=_fill(levels),
        precision=model.precision,
        follow=None if slicewise or windows == "trained" else _free_divisor(model),
    )
    result = yield from slide(
        model.network,
        torch.from_numpy(np.ascontiguousarray(data)),
        classes=len(spec["label_values"]),
        config=config,
        device=model.device,
        normalise=_Normalise(levels),
    )
    return result


def _free_divisor(model: Trained) -> Index | None:
    """See ``Backbone.free_divisor``."""
    found: Index | None = getattr(
        getattr(model.network, "encoder", None), "free_divisor", None
    )
    return found


def is_slicewise(model: Trained) -> bool:
    """Whether the network labels every slice across z by itself."""
    return bool(model.spec.get("slicewise", False))


def useful_flips(model: Trained, flips: Sequence[int]) -> tuple[int, ...]:
    """The axes whose mirroring the network notices: slices do not know their order."""
    slicewise = is_slicewise(model)
    return tuple(axis for axis in flips if axis > 0 or not slicewise)


def as_label_values(
    classes: Tensor | NDArray[Any], spec: Mapping[str, Any]
) -> NDArray[np.int32]:
    """Class indices -> the values the label maps use."""
    table = np.asarray(spec["label_values"], dtype=np.int32)
    values: NDArray[np.int32] = table[np.asarray(classes)]
    return values


class _Normalise:
    """Stored windows -> network input, by the feed's own formula."""

    def __init__(self, levels: Levels) -> None:
        numbers = levels.intensity
        self.gain = levels.scale / numbers.spread
        self.bias = (levels.offset - numbers.centre) / numbers.spread
        self.low = (numbers.low - numbers.centre) / numbers.spread
        self.high = (numbers.high - numbers.centre) / numbers.spread

    def __call__(self, stored: Tensor) -> Tensor:
        return (stored.float() * self.gain + self.bias).clamp_(self.low, self.high)


def _fill(levels: Levels) -> int:
    """The stored number that stands for ``low``: what lies outside a scan."""
    wanted = (levels.intensity.low - levels.offset) / levels.scale
    return max(-32768, min(32767, round(wanted)))


def model_preprocessing(model: Trained, modality: str | None = None) -> Preprocessing:
    """The recipe of the scans the model learnt from.

    Args:
        model: With its card.
        modality: Take scans for this modality, whatever their files say.
    """
    recipe = from_dict(
        Preprocessing, model.card.get("preprocessing", {}), where="model.json"
    )
    return recipe if modality is None else replace(recipe, modality=modality)


def prepared_for(
    model: Trained, volume: Volume, modality: str | None = None
) -> Job[Prepared]:
    """A scan as the model learnt to see scans; says what had to be done to it.

    Args:
        model: With its card and the voxel size it learnt at.
        volume: A scan as stored in its file.
        modality: Take it for this one, whatever its file says.

    Raises:
        UnusableInput: Another modality or number of channels than learnt from.
    """
    check_scan(model, volume, modality)
    recipe = model_preprocessing(model, modality)
    prepared = prepare_volume(volume, recipe, model.learnt)
    yield from preparation_notes(volume, prepared, named_size=recipe.spacing_mm)
    return prepared


def preparation_notes(
    volume: Volume, prepared: Prepared, *, named_size: object = None
) -> Job[None]:
    """What was done to a scan's values, and to its voxels where no recipe asked.

    Args:
        volume: The scan.
        prepared: What ``prepare_volume`` made of it.
        named_size: The recipe's own voxel size; None: it names none.
    """
    if prepared.note:
        yield Note(f"{volume.name}: {prepared.note}.", "warning")
    if named_size is None and not prepared.grid.is_identity:
        new = prepared.affine.spacing_mm
        z, y, x = (mm / s for mm, s in zip(new, prepared.grid.step, strict=True))
        yield Note(brought_note(volume.name, (z, y, x), new))


def check_scan(model: Trained, volume: Volume, modality: str | None = None) -> None:
    """Refuse a scan whose intensities mean something else than those learnt from.

    Args:
        model: With its spec.
        volume: The scan; a modality of OTHER (the file does not say) passes.
        modality: What the user says the scan is, whatever its file says.

    Raises:
        UnusableInput: Another number of channels, or another known modality.
    """
    channels = int(model.spec["channels"])
    if volume.data.shape[0] != channels:
        raise UnusableInput(
            f"the model takes {channels} channels, {volume.name!r} has "
            f"{volume.data.shape[0]}."
        )
    known = [m for m in model.spec["modalities"] if m != "OTHER"]
    own = modality or volume.modality
    if known and own != "OTHER" and own not in known:
        raise UnusableInput(
            f"the model learnt from {', '.join(known)}, but {volume.name!r} is {own}; "
            f"if the file is mistaken, say --modality {known[0]}."
        )


def smallest_integers(labels: NDArray[Any]) -> NDArray[Any]:
    """The same labels in the smallest integer type that holds them."""
    highest = int(labels.max(initial=0))
    kind = np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int32
    return labels.astype(kind)
