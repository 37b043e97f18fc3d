"""Crops again where the detector was wrong: false positives in training scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.distributed import from_first, world
from homolog.events import drain
from homolog.feed.batches import StoredScan
from homolog.feed.places import Places
from homolog.feed.reading import CaseRef
from homolog.metrics.detection import overlaps
from homolog.tasks.base import PredictOptions, Trained
from homolog.tasks.detect.answer import Boxes, Window, find_boxes
from homolog.tasks.detect.detector import DetectModule
from homolog.tasks.detect.targets import BoxSpace, KnownBoxes
from homolog.views.random import generator
from homolog.words import counted

# Places that are remembered, and the most of one scan: one odd scan is not all.
REMEMBERED, _PER_SCAN = 256, 4
# Windows of a scan that are looked at.
_WINDOWS = 8
# A box is confident from this score on (one of no opinion has 0.07; of a detector that
# had learnt phantom lesions, the surest wrong boxes of scans had 0.2 to 0.3, true ones
# 0.5 to 0.7), and hits nothing where it overlaps no true box of its class by more.
_SURE, _MEETS = 0.2, 0.1


@dataclass(frozen=True, eq=False)
class Searched:
    """What is searched.

    Attributes:
        cases: Those learnt from, in the feed's order.
        boxes: Their true boxes.
        space: The classes.
        seed: Of the run.
    """

    cases: Sequence[CaseRef]
    boxes: KnownBoxes
    space: BoxSpace
    seed: int


class FalsePositives:
    """Runs the detector on training scans, and remembers what it wrongly found there.

    Boxes that are confident and meet no true box of their class become places of crops.
    What was remembered of a scan is replaced when it is searched again; the oldest
    places are forgotten first.

    Args:
        module: What is trained; its ``misses`` hold the places.
        model: The deployed network as it is now.
        searched: Scans and their boxes.
        share: Of crops that are centred on such places.
        every: Steps between two searches.
        count: Scans of a search.

    Source: Sung and Poggio, PAMI 1998 (bootstrapping false positives); Shrivastava et
        al., OHEM, CVPR 2016, section 3 (alternating search and learning).
    Differs from the papers: places of crops are chosen, not regions of a loss, which
        is the focal one.
    """

    def __init__(
        self,
        module: DetectModule,
        model: Callable[[], Trained],
        searched: Searched,
        *,
        share: float,
        every: int,
        count: int,
    ) -> None:
        self.places = Places(share)
        self._module, self._model, self._searched = module, model, searched
        self._every, self._count = every, count

    def begin(self) -> None:
        """Take up what the module remembers."""
        rows = self._module.misses.detach().cpu().numpy()
        self.places.rows = rows[~np.isnan(rows[:, 0])].copy()

    def is_due(self, done: int, total: int) -> bool:
        """Every so many steps, while there are more to come."""
        return 0 < done < total and done % self._every == 0

    def __call__(self, done: int) -> str:
        """Search some scans; says what was found."""
        rng = generator(self._searched.seed, done, stream="scans searched")
        cases = len(self._searched.cases)
        chosen = rng.permutation(cases)[: self._count].tolist()
        found: list[list[float]] = []
        if world().is_first:
            model = self._model()
            for case in chosen:
                found += [[case, *place] for place in self._of(case, model, rng)]
        found = from_first(found)
        kept = self.places.rows[~np.isin(self.places.rows[:, 0], chosen)]
        rows = np.concatenate([np.array(found, np.float32).reshape(-1, 4), kept])
        self.places.rows = rows[:REMEMBERED]
        misses = self._module.misses
        misses.fill_(torch.nan)
        misses[: len(self.places.rows)] = torch.from_numpy(self.places.rows)
        scans = len({row[0] for row in found})
        text = (
            f"searched {counted(len(chosen), 'training scan')} after {done} steps: "
            f"{counted(len(found), 'false positive')}"
        )
        return f"{text} in {scans} of them." if scans else f"{text}."

    def _of(
        self, case: int, model: Trained, rng: np.random.Generator
    ) -> list[list[float]]:
        """Places (z, y, x) in voxels of a case, the surest first."""
        ref = self._searched.cases[case]
        data = np.asarray(ref.store.image(ref.card.id)[:])
        scan = StoredScan(data, ref.card.affine, ref.card.levels)

        def some(windows: list[Window]) -> list[Window]:
            if len(windows) <= _WINDOWS:
                return windows
            return [windows[i] for i in rng.permutation(len(windows))[:_WINDOWS]]

        found = drain(find_boxes(model, scan, PredictOptions(overlap=0.25), some))
        assert found is not None
        wrong = found.kept(self._is_wrong(ref, found))
        middles = (wrong.boxes[:, :3] + wrong.boxes[:, 3:]) / 2 - 0.5
        places: list[list[float]] = middles[:_PER_SCAN].tolist()
        return places

    def _is_wrong(self, ref: CaseRef, found: Boxes) -> NDArray[np.bool_]:
        """(N,) which boxes are confident, judged at all, and meet no true one."""
        space = self._searched.space
        known = space.known(ref)
        true = [(space.number(b["label"]), b) for b in self._searched.boxes.of(ref)]
        wrong = known[found.label] & (found.scores >= _SURE)
        for label in np.unique(found.label):
            own = [[*b["min"], *b["max"]] for number, b in true if number == label]
            if own:
                at = found.label == label
                best = overlaps(np.array(own, float), found.boxes[at]).max(0)
                wrong[at] &= best <= _MEETS
        return wrong


def windows_of_scan(shapes: Sequence[Sequence[float]], window: Sequence[int]) -> float:
    """Windows that a typical scan has, by volume.

    Args:
        shapes: Of the scans, as the network sees them.
        window: Of the network.
    """
    ratios = [
        np.prod([max(n / w, 1.0) for n, w in zip(shape, window, strict=True)])
        for shape in shapes
    ]
    return float(np.median(ratios))
