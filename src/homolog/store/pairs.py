"""Tables beside a store: pairs of places of its cases, and maps of depth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Progress, Request
from homolog.json_files import parsed_object
from homolog.store.arrays import checksums_of, write_array
from homolog.store.card import Card
from homolog.store.store import DEPTH, DEPTH_CARD, DEPTH_STEPS, Store, case_folder
from homolog.writing import crc_text, replacing, write_json, write_npy

# How deep each labelled voxel lies within its label: kept in the store beside it.
#
# ``cases/ID/depth.b2nd`` holds quarter voxels as int16; ``depth.json`` holds of which
# preparation of the case it was made. A case prepared anew loses both.


_DEEPEST = 32767


def depth_map(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Distance (voxels) of each labelled voxel from the boundary of its label.

    The distance to the nearest voxel of another label or of none, less one: 0 on the
    boundary. The border of the scan is no boundary. Background and unlabelled voxels
    have 0.

    Args:
        labels: (D, H, W), classes above 0.

    Returns:
        (D, H, W) float32; a label that fills the whole scan has its largest side.

    Source: MixCL, Eq. 7, D(S); voxels, not mm, since its mu is in voxels.

    Paper: MixCL Eq. 7.
    """
    from scipy import ndimage

    depth = np.zeros(labels.shape, np.float32)
    clipped = np.where(labels > 0, labels, 0).astype(np.int32)
    for number, box in enumerate(ndimage.find_objects(clipped), start=1):
        if box is None:
            continue
        # one voxel of what lies around, so that the box's faces are no boundary
        wide = tuple(
            slice(max(s.start - 1, 0), min(s.stop + 1, n))
            for s, n in zip(box, labels.shape, strict=True)
        )
        mask = clipped[wide] == number
        if mask.all():
            depth[wide] = max(labels.shape)
            continue
        inside = ndimage.distance_transform_edt(mask) - 1.0
        np.copyto(depth[wide], inside.astype(np.float32), where=mask)
    return depth


def write_depths(cases: Sequence[tuple[Store, Card]]) -> Job[int]:
    """Make what is missing, case by case.

    Returns:
        How many were made; fewer than were missing when stopped.
    """
    missing = [
        (store, card)
        for store, card in cases
        if card.has_label and store.depth(card) is None
    ]
    for number, (store, card) in enumerate(missing):
        request = yield Progress("boundaries", number, len(missing), card.id)
        if request is Request.STOP:
            return number
        _write(store, card)
    if missing:
        yield Progress("boundaries", len(missing), len(missing))
    return len(missing)


def _write(store: Store, card: Card) -> None:
    label = store.label(card.id)
    assert label is not None
    depth = np.minimum(np.rint(depth_map(np.asarray(label)) * DEPTH_STEPS), _DEEPEST)
    folder = case_folder(store.path, card.id)
    if store.path not in folder.resolve().parents:
        raise JobError(
            f"{folder} is a link out of its store; nothing is written there."
        )
    # several processes may make the same one; each writes a file of its own
    with replacing(folder / DEPTH, suffix_last=True) as half:
        write_array(depth.astype(np.int16), half)
        size, checksums = half.stat().st_size, checksums_of(half, card.shape)
    facts = {
        "key": card.key,
        "steps": DEPTH_STEPS,
        "bytes": size,
        "checksums": checksums,
    }
    write_json(folder / DEPTH_CARD, facts, end="")


FOLDER = "pairs"
ROW = np.dtype(
    [
        ("case", "<i4"), ("mm", "<f8", 3), ("partner", "<i4"),
        ("partner_mm", "<f8", 3), ("score", "<f4"), ("cycle_mm", "<f4"),
    ]
)  # fmt: skip
Rows = NDArray[np.void]


@dataclass(frozen=True, eq=False)
class PairTable:
    """Matching places of the cases of one store.

    Attributes:
        ids: Case ids; ``case`` and ``partner`` of a row are positions in it.
        rows: Structured array of ROW: places in world mm (z, y, x), similarity 0..1 of
            the match, and how far from the place the match leads back (mm).
        card: How it was made: ``encoder_id``, ``encoder``, ``store_hash``, ``points``,
            ``seed``, ``random`` (places paired blindly, for comparison).
    """

    ids: tuple[str, ...]
    rows: Rows
    card: Mapping[str, Any]

    def accepted(
        self,
        least_score: float,
        largest_cycle_mm: float = 0.0,
        best_share: float = 1.0,
    ) -> Rows:
        """Rows good enough to be trained on.

        Args:
            least_score: Least similarity.
            largest_cycle_mm: Longest way back; 0: any.
            best_share: Of the table, the most similar first.

        Paper: Alice 4.2, pairs.
        """
        score = self.rows["score"]
        good = score >= least_score
        if largest_cycle_mm > 0:
            good &= self.rows["cycle_mm"] <= largest_cycle_mm
        if best_share < 1 and len(score):
            good &= score >= np.quantile(score, 1 - best_share)
        found: Rows = self.rows[good]
        return found


def write_pairs(store: Path, table: PairTable) -> Path:
    """Write the table into a store's folder; the old one is replaced at the end.

    Returns:
        The folder.
    """
    folder = store / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").unlink(missing_ok=True)  # never an old card of a new table
    written = write_npy(folder / "table.npy", table.rows)
    card = {
        **table.card, "ids": list(table.ids), "rows": len(table.rows),
        "checksum": crc_text(written),
    }  # fmt: skip
    write_json(folder / "pairs.json", card, end="")
    return folder


def read_pairs(store: Path) -> PairTable | None:
    """The table of a store; None where none was made.

    Raises:
        UnusableInput: It is damaged.
    """
    folder = store / FOLDER
    try:
        card = parsed_object((folder / "pairs.json").read_bytes())
        written = (folder / "table.npy").read_bytes()
        wanted = card.pop("checksum", None)  # absent in tables of earlier versions
        if wanted not in (None, crc_text(written)):
            raise ValueError("it does not match its checksum")
        rows = np.load(io.BytesIO(written), allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, EOFError) as error:
        raise UnusableInput(
            f"the table of matching places in {folder} is damaged ({error}); make it "
            f"again: homolog align {store} --encoder RUN"
        ) from None
    ids = tuple(card.pop("ids", ()))
    if rows.dtype != ROW or card.pop("rows", -1) != len(rows):
        raise UnusableInput(
            f"the table of matching places in {folder} is not whole; make it again: "
            f"homolog align {store} --encoder RUN"
        )
    return PairTable(ids, rows, card)
