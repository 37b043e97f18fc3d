"""What the crops of the recipes ``paper`` show, measured on the views generated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from homolog.backbones import build
from homolog.config import from_dict
from homolog.feed.batches import Feed
from homolog.geometry.affine import Affine
from homolog.methods import METHODS
from homolog.methods.base import Method
from homolog.views.view import Views
from memory_store import MemoryStore

SPACING = (3.0, 1.0, 1.5)


def cases() -> list[Any]:
    """Three volumes of unequal height."""
    store, affine = MemoryStore(), Affine.of(SPACING)
    return [
        store.add(np.zeros((1, depth, 60, 50), np.int16), affine)
        for depth in (30, 41, 26)
    ]


def paper(name: str, net: dict[str, Any], **smaller: Any) -> Method:
    """A method of the recipe ``paper``, with smaller crops on a smaller network."""
    cls = METHODS.get(name)
    settings = {**cls.RECIPES["paper"]["method"], **smaller}
    return cls(build(net.pop("name"), net), from_dict(cls.Config, settings))


def views_of(method: Method, batch: int = 6) -> Views:
    feed = Feed(cases(), method.views(), batch_size=batch, seed=0, threads=0)
    return feed.views(feed.batch(0), "cpu")


def depths_mm(views: Views, name: str) -> Tensor:
    """(B, V, D), height of each voxel plane's middle; all views are level."""
    view = views[name]
    d, h, w = view.size
    planes = torch.zeros(d, 4, dtype=torch.float64)
    planes[:, 0] = torch.arange(d)
    planes[:, 1:] = torch.tensor([(h - 1) / 2, (w - 1) / 2, 1.0])
    level = view.affine[..., 0, 1:3]
    assert torch.allclose(level, torch.zeros_like(level), atol=1e-9)
    return torch.einsum("bvj,dj->bvd", view.affine[..., 0, :], planes)


SMALL = {"widths": [8, 16], "stage_blocks": [1, 1], "norm": "group"}
HYBRID = {
    "name": "hybrid", **SMALL, "block": "basic", "dim": 16, "heads": 2, "inner": 16,
    "layers": 1,
}  # fmt: skip
FEW = {"prototypes": 8, "queue_length": 0, "hidden": 16, "dim": 8}


def test_hundred_million_takes_all_crops_from_one_slice() -> None:
    """Paper: Hundred Million III-A, one image."""
    method = paper(
        "hundred_million", {"name": "resnet2d", **SMALL}, size=[1, 32, 32],
        small_size=[1, 16, 16], bands_probability=0.0, **FEW,
    )  # fmt: skip
    views = views_of(method)
    found = torch.cat([depths_mm(views, n) for n in ("large", "small")], dim=1)
    assert found.shape == (6, 8, 1)
    assert (found.amax(1) - found.amin(1)).max() == 0
    assert len(found[:, 0, 0].unique()) > 1  # samples lie at several heights
    # anywhere in the plane, not about one place
    centres = views["large"].affine[..., 1:3, :] @ torch.tensor(
        [0.0, 15.5, 15.5, 1.0], dtype=torch.float64
    )
    assert (centres[:, 0] - centres[:, 1]).abs().max() > 8


@pytest.mark.parametrize("depth", [8, 64])  # 64: higher than any scan
def test_joint_shows_the_same_slices_in_both_views(depth: int) -> None:
    """Paper: Joint Eq. 11, the same n slices."""
    method = paper(
        "joint", dict(HYBRID), size=[depth, 32, 32], slice_size=[1, 32, 32],
        small_size=[1, 16, 16], prototypes_volumes=8, **FEW,
    )  # fmt: skip
    views = views_of(method)
    for name in ("volumes", "masked"):
        heights = depths_mm(views, name)
        assert torch.equal(heights[:, 0], heights[:, 1])
        apart = heights.diff(dim=2)
        torch.testing.assert_close(apart, torch.full_like(apart, SPACING[0]))
    slices = torch.cat([depths_mm(views, n) for n in ("slices", "small")], dim=1)
    assert (slices.amax(1) - slices.amin(1)).max() == 0


def test_far_crops_are_still_to_be_had() -> None:
    method = paper(
        "joint", dict(HYBRID), size=[8, 32, 32], slice_size=[1, 32, 32],
        small_size=[1, 16, 16], prototypes_volumes=8, place="scan",
        rotate_deg=[15, 0, 0], **FEW,
    )  # fmt: skip
    heights = depths_mm(views_of(method), "volumes")
    assert (heights[:, 0] - heights[:, 1]).abs().max() > 8 * SPACING[0]
