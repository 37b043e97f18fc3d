"""How deep each labelled voxel lies within its label: kept in the store beside it.

``cases/ID/depth.b2nd`` holds quarter voxels as int16; ``depth.json`` holds of which
preparation of the case it was made. A case prepared anew loses both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from homolog.errors import JobError
from homolog.events import Job, Progress, Request
from homolog.store.arrays import checksums_of, write_array
from homolog.store.card import Card
from homolog.store.store import (
    DEPTH,
    DEPTH_CARD,
    DEPTH_STEPS,
    Store,
    case_folder,
)
from homolog.writing import replacing, write_json

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
