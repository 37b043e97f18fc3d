"""Energy bands of whole slices, changed before crops are cut from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.geometry.affine import Array
from homolog.store.card import Card
from homolog.store.crops import Sliceable, read_box
from homolog.views.energy_bands import Spectrum, drawn_energies
from homolog.views.intensity import CHANGES
from homolog.views.plan import GroupPlan, Scan
from homolog.views.view import ViewSpec

_BANDS = CHANGES.index("bands")


@dataclass(frozen=True)
class _Changed:
    """A stored scan, one slice of which reads otherwise.

    Attributes:
        array: (C, D, H, W).
        number: Of the slice.
        slice: (C, H, W), what it reads.
    """

    array: Sliceable
    number: int
    slice: NDArray[np.int16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the scan."""
        return self.array.shape

    @property
    def dtype(self) -> Any:
        """Of the scan."""
        return self.array.dtype

    def __getitem__(self, key: Any) -> NDArray[np.int16]:
        """Read by four slices."""
        found = np.array(self.array[key])
        first, stop, _ = key[1].indices(self.shape[1])
        if first <= self.number < stop:
            found[:, self.number - first] = self.slice[key[0], key[2], key[3]]
        return found


# Paper: Hundred Million Eq. 8, the entire image.
class SliceBands:
    """What the views of one sample are cut from, where their bands are changed before.

    Slices are read and transformed once, however many views are cut from them.

    Args:
        image: Stored scan (C, D, H, W).
        card: Of it.
        scan: Its grid.
    """

    def __init__(self, image: Sliceable, card: Card, scan: Scan) -> None:
        self._image, self._card, self._scan = image, card, scan
        self._slices: dict[int, Spectrum] = {}

    def sources(self, spec: ViewSpec, plan: GroupPlan) -> list[Sliceable]:
        """The scan, or the scan with its slice changed, for each view of a group."""
        return [self._source(spec, plan, view) for view in range(len(plan.affine))]

    def _source(self, spec: ViewSpec, plan: GroupPlan, view: int) -> Sliceable:
        draws, reference = plan.intensity, spec.intensity.bands_reference
        if not draws.on[view, _BANDS]:
            return self._image
        assert reference is not None
        middle = np.array([*((n - 1) / 2 for n in spec.size), 1.0])
        place = self._scan.affine.inverse().apply((plan.affine[view] @ middle)[:3])
        number = int(np.clip(round(float(place[0])), 0, self._scan.shape[0] - 1))
        key = torch.from_numpy(draws.key[view : view + 1])
        wanted = drawn_energies(reference.of(self._card.modality), key)[0]
        spectrum = self._spectrum(number, reference.sigmas)
        changed = spectrum.with_energies(wanted.double().numpy())
        strength = float(draws.value[view, _BANDS])
        mixed = (1 - strength) * spectrum.slices + strength * changed
        stored = stored_numbers(mixed, self._card)
        return _Changed(self._image, number, stored)

    def _spectrum(self, number: int, sigmas: tuple[float, ...]) -> Spectrum:
        if number not in self._slices:
            values = slice_values(self._image, self._card, number)
            self._slices[number] = Spectrum(values, sigmas)
        return self._slices[number]


def slice_values(image: Sliceable, card: Card, number: int) -> Array:
    """(C, H, W) normalised values of one slice of a stored scan."""
    size = (1, *image.shape[2:])
    stored = read_box(image, (number, 0, 0), size, 0)[:, 0]
    value = stored.astype(np.float64) * card.scale + card.offset
    found: Array = np.asarray(card.intensity.normalise(value), dtype=np.float64)
    return found


def stored_numbers(values: Array, card: Card) -> NDArray[np.int16]:
    """Normalised values as a store would keep them."""
    stored = (values * card.spread + card.centre - card.offset) / card.scale
    limits = np.iinfo(np.int16)
    return np.rint(stored).clip(limits.min, limits.max).astype(np.int16)
