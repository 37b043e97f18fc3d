"""Label maps and boxes of some scans as supervision of a pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.config import ConfigError
from homolog.data.box_map import BOXES, box_name
from homolog.data.label_names import has_name, refuse_ignored
from homolog.losses.segmentation import dice_cross_entropy
from homolog.nn.cell_sampling import at_cells
from homolog.nn.heads import DenseDecoder
from homolog.views.view import View

if TYPE_CHECKING:
    from homolog.feed import CaseRef

_HIDDEN = 64

# One class of one store: number of the store, its value there, number of the class.
Row = tuple[int, int, int]


def masks_of(cases: Sequence[CaseRef]) -> tuple[list[str], list[Row]]:
    """The classes that label maps and boxes annotate together.

    Labels of one name are one class, whichever store or kind of mark they come from;
    a label without a name of its own is a class of its own store.

    Args:
        cases: What is learnt from.

    Returns:
        Names of the classes, and one row (store, value, class) for each class of each
        store. Stores are numbered as ``View.label_space``; classes from 1; a box has
        the value ``BOXES`` + class.
    """
    number: dict[tuple[str, ...], int] = {}
    names: list[str] = []

    def class_of(name: str, *of: str) -> int:
        key = (name.strip().casefold(), *of)
        if key not in number:
            names.append(name)
            number[key] = len(names)
        return number[key]

    rows: set[Row] = set()
    numbers: dict[Path, int] = {}
    for case in cases:
        path, card = case.store.path, case.card
        if path not in numbers:
            refuse_ignored(path, case.store.label_names)
        store = numbers.setdefault(path, len(numbers))
        for value in card.label_values:
            name = case.store.label_names.get(value, "")
            if has_name(value, name):
                one = class_of(name)
            else:
                one = class_of(f"label {value} of {path.name}", str(path))
            rows.add((store, value, one))
        # a case has one map: beside a label map its boxes stay unused
        for box in () if card.has_label else card.boxes:
            one = class_of(box_name(box))
            rows.add((store, BOXES + one, one))
    return names, sorted(rows)


class MaskHead(nn.Module):
    """Reads label maps off an encoder's maps, coarsely; dropped after the training.

    All maps from one of a given stride on are projected, enlarged and added: what can
    be read so must lie in the encoder. A decoder to every voxel would learn much of it
    itself, and cost more than a small encoder.

    A label map or box only says something of the classes its store annotates: what is
    not, counts as background or any of the others. Inside a box is its class, outside
    background: a weak truth.

    Args:
        backbone: Its channels and strides are read; it is not kept.
        stride: In plane; the first map as coarse, or else the deepest, gives the grid.
        classes: How many, without background.
        rows: Of ``masks_of``.

    Raises:
        ConfigError: A row of a class that is not there.

    Source: Ghesu et al., arXiv 2201.01283, Eq. 5 and 6: g reads output and intermediate
    features; the paper names no loss for masks: Dice and cross-entropy (nnU-Net).
    """

    def __init__(
        self,
        backbone: Backbone,
        stride: int,
        classes: int,
        rows: Sequence[Row],
    ) -> None:
        super().__init__()
        wrong = [r for r in rows if min(r[:2]) < 0 or not 0 < r[2] <= classes]
        if wrong:
            raise ConfigError(
                f"mask_rows must be (store, value, class), class 1 to {classes} of "
                f"mask_names, got {tuple(wrong[0])}."
            )
        coarse = [i for i, (_, _, x) in enumerate(backbone.strides) if x >= stride]
        self.first = coarse[0] if coarse else len(backbone.strides) - 1
        self.stride = backbone.strides[self.first]
        self.decoder = DenseDecoder(
            list(backbone.channels[self.first :]),
            hidden=_HIDDEN,
            out_features=classes + 1,
        )
        # two rows per store, label maps and boxes; column v + 1: class of value v
        stores = 1 + max(store for store, _, _ in rows)
        top = max(value - (BOXES if value > BOXES else 0) for _, value, _ in rows)
        table = torch.zeros(2 * stores, top + 3, dtype=torch.int64)
        table[:, 0] = -1
        annotated = torch.zeros(2 * stores, classes + 1, dtype=torch.bool)
        annotated[:, 0] = True
        for store, value, one in rows:
            is_box = value > BOXES
            row, column = 2 * store + is_box, value - BOXES * is_box + 1
            table[row, column] = one
            annotated[row, one] = True
        self.table: Tensor
        self.annotated: Tensor
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("annotated", annotated, persistent=False)

    def target(self, view: View, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the cells of a map are.

        Args:
            view: With labels.
            grid: Cells (d, h, w).

        Returns:
            (B V, d, h, w) int64 classes, 0 background, -1 unknown; and (B V, K + 1)
            bool, the classes that the crop's store annotates.
        """
        assert view.label is not None
        assert view.label_space is not None
        d, h, w = grid
        value = at_cells(view.label.flatten(0, 1), self.stride, (d, h, w))
        is_box = (value >= BOXES).any(1).long()
        value = torch.where(value >= BOXES, value - BOXES, value)
        space = view.label_space.repeat_interleave(view.label.shape[1])
        # stores after the last labelled one have no rows, and nothing to look up
        row = (2 * space + is_box).clamp_max(len(self.table) - 1)
        column = (value + 1).clamp_max(self.table.shape[1] - 1)
        classes = self.table[row[:, None], column].reshape(-1, d, h, w)
        return classes, self.annotated[row]

    def forward(self, maps: Sequence[Tensor], view: View) -> Mapping[str, Tensor]:
        """``error``, ``labelled`` (share of crops), ``dice`` of the classes there.

        Args:
            maps: All maps of the encoder for the crops of the view, (B V, E, d, h, w).
            view: With labels.
        """
        logits = self.decoder(tuple(maps[self.first :]))
        target, annotated = self.target(view, logits.shape[2:])
        with torch.autocast(logits.device.type, enabled=False):
            dice, cross_entropy = dice_cross_entropy(
                logits, target, annotated, together=True
            )
        labelled = (target >= 0).flatten(1).any(1).float().mean()
        return {
            "error": dice + cross_entropy,
            "labelled": labelled,
            "dice": _overlap(logits.detach(), target, annotated),
        }


def _overlap(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    """Mean Dice, over the batch, of the classes that its truth shows; 0 without any."""
    shown = logits.float().masked_fill(~annotated[:, :, None, None, None], -torch.inf)
    known = (target >= 0)[:, None]

    def marked(classes: Tensor) -> Tensor:
        return torch.zeros_like(shown).scatter_(1, classes[:, None], 1.0) * known

    told, truth = marked(shown.argmax(1)), marked(target.clamp_min(0))
    space = (0, 2, 3, 4)
    sizes = truth.sum(space)[1:]
    score = 2 * (told * truth).sum(space)[1:] / (told.sum(space)[1:] + sizes + 1e-12)
    there = sizes > 0
    return (score * there).sum() / there.sum().clamp_min(1)
