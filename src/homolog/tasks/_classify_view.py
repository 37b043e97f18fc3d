"""What a classifier sees of a scan, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.data.preprocess import Prepared
from homolog.feed import CaseRef
from homolog.feed.single import StoredScan, view_of
from homolog.geometry.affine import Index
from homolog.tasks._base import Trained
from homolog.tasks._classifier import ClassifyNetwork, keeps_slices
from homolog.tasks._classify_module import slices_inside
from homolog.tasks._classify_settings import ClassifyConfig
from homolog.tasks._scan_truth import slice_positions
from homolog.tasks._segment_settings import intensity_changes
from homolog.tasks._segmenter import spec_index
from homolog.training.precision import autocast
from homolog.views.view import ViewSpec, Whole

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a classifier says of one scan; slices are those of the view inside it (n).

    Attributes:
        chances: (K,) probabilities of the classes.
        types: (T,) probabilities of the types.
        places: (n,) where the slices lie among the prepared scan's.
        z_mm: (n,) z of their middles in the world, LPS.
        covered: (n, 2) first slice of the prepared scan that each covers, and one past
            the last.
        presence: (n,) probability that a slice shows a finding; (0,) where not learnt.
        attention: (n,) its share in the answer; None but slice by slice.
        alone: (n, K) probabilities of the classes, the slice seen by itself; likewise.
    """

    chances: Numbers
    types: Numbers
    places: Numbers
    z_mm: Numbers
    covered: NDArray[np.int64]
    presence: Numbers
    attention: Numbers | None
    alone: Numbers | None

    def slice_rows(
        self, numbers: Numbers, classes: Sequence[str]
    ) -> list[dict[str, float]]:
        """See ``ClassChances.slices``; empty where slices are not told apart.

        Args:
            numbers: (D,) number in the scan's own grid of each prepared slice.
            classes: Names.
        """
        if self.attention is None and not len(self.presence):
            return []
        own = np.interp(self.places, np.arange(len(numbers)), numbers)
        rows = []
        for row, (number, z_mm) in enumerate(zip(own, self.z_mm, strict=True)):
            told = {"slice": float(round(number)), "z_mm": float(z_mm)}
            if len(self.presence):
                told["presence"] = float(self.presence[row])
            if self.attention is not None:
                told["attention"] = float(self.attention[row])
            if self.alone is not None:
                alone = zip(classes, self.alone[row], strict=True)
                told |= {f"p_{name}": float(p) for name, p in alone}
            rows.append(told)
        return sorted(rows, key=lambda told: told["slice"])


def view_spec(
    size: Index, config: ClassifyConfig | None = None, *, slices: bool = False
) -> ViewSpec:
    """The view of a scan: as it is, or changed at random.

    Args:
        size: The window (D, H, W).
        config: How it is changed.
        slices: Whether the encoder keeps slices apart: then they are the scan's own.
    """
    place = Whole(slices=slices)
    if config is None:
        return ViewSpec(size=size, place=place)
    solid = float(size[0] > 1)
    shift = config.translate
    return ViewSpec(
        size=size,
        place=place,
        translate=(shift * solid, shift, shift),
        rotate_deg=(config.rotate_deg, 0.0, 0.0),
        scale=(1.0 / (1.0 + config.scale), 1.0 + config.scale),
        flip=config.flip,
        intensity=intensity_changes(config.intensity),
    )


@torch.no_grad()
def answer(model: Trained, scan: StoredScan) -> Answer:
    """What the model says of a prepared scan."""
    network = model.network
    assert isinstance(network, ClassifyNetwork)
    window = spec_index(model.spec, "window")
    spec = view_spec(window, slices=keeps_slices(network.encoder))
    view = view_of(spec, scan, model.device)
    valid = slices_inside(view)
    was = network.training
    network.eval()
    try:
        with autocast(model.device, model.precision):
            scores = network.scores(view.flat(), valid)
    finally:
        network.train(was)
    several = bool(model.spec.get("several", False))

    def chances(logits: torch.Tensor) -> Numbers:
        exact = logits.double()
        sure = exact.sigmoid() if several else exact.softmax(-1)
        return np.asarray(sure.cpu().numpy())

    inside = valid[0].cpu().numpy()
    affine = view.affine[:, 0].cpu()
    place = torch.tensor(scan.affine.inverse().matrix[:1])
    at, step = slice_positions(place, affine, window)
    places = np.clip(at[0].numpy()[inside], 0, scan.shape[0] - 1)
    reach = max(float(step[0]) / 2, 0.5) + 1e-3
    first = np.ceil(places - reach).clip(0).astype(np.int64)
    last = np.floor(places + reach).astype(np.int64) + 1
    middle = (np.array(scan.shape) - 1) / 2
    points = np.stack([places, *(np.full(len(places), m) for m in middle[1:])], 1)
    none = np.zeros(0)
    types, slices, shares = scores.types, scores.slices, scores.attention
    alone = scores.alone
    return Answer(
        chances=chances(scores.classes[0]),
        types=none if types is None else types[0].double().sigmoid().cpu().numpy(),
        places=places,
        z_mm=scan.affine.apply(points)[:, 0],
        covered=np.stack([first, last], 1),
        presence=none
        if slices is None
        else slices[0].double().sigmoid().cpu().numpy()[inside],
        attention=None if shares is None else shares[0].double().cpu().numpy()[inside],
        alone=None if alone is None else chances(alone[0])[inside],
    )


def stored_scan(prepared: Prepared) -> tuple[StoredScan, Numbers]:
    """A scan's file as the store would keep it.

    Returns:
        The scan, and the number in its own canonical grid of each of its slices.
    """
    scan = StoredScan(
        prepared.data, prepared.affine, prepared.scale, prepared.offset,
        prepared.intensity,
    )  # fmt: skip
    return scan, prepared.grid.positions(0)


def stored(case: CaseRef) -> StoredScan:
    """A case of a store."""
    card = case.card
    data = np.asarray(case.store.image(card.id)[:])
    return StoredScan(data, card.affine, card.scale, card.offset, card.intensity)
