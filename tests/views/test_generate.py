"""Views made from blocks: every voxel is where its affine says."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from each import each
from homolog.geometry.affine import Affine
from homolog.geometry.sampling import displacement_at
from homolog.scans.volume import Volume, closest_canonical
from homolog.views.generate import (
    Block,
    GroupDraw,
    Levels,
    block_affine,
    boxes_of,
    generate,
    share_blocks,
)
from homolog.views.plan import Scan, plan_views
from homolog.views.view import Anchor, Elsewhere, View, ViewSpec, Whole, Within

ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
WILD = {
    "rotate_deg": (25, 25, 25),
    "scale": (0.8, 1.25),
    "anisotropy": 0.2,
    "flip": (0.5, 0.5, 0.5),
    "translate": (0.2, 0.2, 0.2),
    "quarter_turns": True,
    "elastic_mm": 1.0,
}


def _coordinates(affine: Affine, shape: tuple[int, ...]) -> np.ndarray:
    """(3, D, H, W): a scan that holds its own world positions."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    world = affine.apply(index.reshape(-1, 3)).reshape(*shape, 3)
    return np.moveaxis(world, -1, 0)


def _make(spec: ViewSpec, data: np.ndarray, scan: Scan, sample: int = 0) -> View:
    """The real path from specs to views, of one sample of float values."""

    def place(rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(0, np.array(scan.shape) - 1)

    specs = {"v": spec}
    plan = plan_views(specs, scan, place, seed=0, sample=sample)["v"]
    (share,) = share_blocks(specs)
    parts = boxes_of(share, {"v": plan}, specs, scan)
    cuts = [
        data[:, *(slice(s, s + n) for s, n in zip(b.start, b.size, strict=True))]
        for b in parts
    ]
    assert all(b.pool == (1, 1, 1) for b in parts)
    largest = np.max([c.shape for c in cuts], axis=0)
    grown = [
        np.pad(c, [(0, n - m) for n, m in zip(largest, c.shape, strict=True)])
        for c in cuts
    ]
    block = Block(
        torch.from_numpy(np.stack(grown))[None].double(),
        torch.from_numpy(np.stack([block_affine(b, scan).matrix for b in parts]))[None],
        torch.from_numpy(np.stack([np.array(b.size, float) for b in parts]))[None],
    )
    field = plan.displacement_mm
    draw = GroupDraw(
        torch.from_numpy(plan.affine)[None],
        None if field is None else torch.from_numpy(field)[None],
        plan.intensity,
    )
    outside = torch.full((1, len(data)), -7.0)
    return generate(spec, draw, block, outside, torch.zeros(1, dtype=torch.int64))


def _check_places(view: View, scan: Scan) -> float:
    """Values of a scan of coordinates against the affines; the share compared."""
    shares = []
    for v in range(view.image.shape[1]):
        voxels = _coordinates(Affine(view.affine[0, v].numpy()), view.size)
        if view.displacement_mm is not None:
            voxels = (
                voxels + displacement_at(view.displacement_mm[0, v], view.size).numpy()
            )
        index = scan.affine.inverse().apply(np.moveaxis(voxels, 0, -1).reshape(-1, 3))
        last = np.array(scan.shape) - 1
        inside = ((index > -0.499) & (index < last + 0.499)).all(1).reshape(view.size)
        # the outermost half voxel holds the edge value
        held = scan.affine.apply(np.clip(index, 0, last)).reshape(*view.size, 3)
        expected = np.moveaxis(held, -1, 0)
        found = view.image[0, v].numpy()
        assert view.valid[0, v].numpy()[inside].all()
        np.testing.assert_allclose(found[:, inside], expected[:, inside], atol=5e-3)
        beyond = ((index < -0.501) | (index > last + 0.501)).any(1).reshape(view.size)
        assert not view.valid[0, v].numpy()[beyond].any()
        assert (found[:, ~view.valid[0, v].numpy()] == -7.0).all()
        shares.append(inside.mean())
    return float(np.mean(shares))


@each("axes, signs", ORDERS)
def test_every_voxel_is_where_its_affine_says_for_any_axis_order(
    axes: tuple, signs: tuple
) -> None:
    tilt = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    direction = np.zeros((3, 3))
    direction[axes, range(3)] = signs
    own = Affine.of((3.1, 1.3, 0.9), (-800.0, 1200.0, 350.0), tilt @ direction)
    raw = Volume(_coordinates(own, (18, 22, 26)), own)
    canonical = closest_canonical(raw)
    scan = Scan(canonical.affine, canonical.shape)
    view = _make(ViewSpec((10, 12, 14), count=2, **WILD), canonical.data, scan)
    assert _check_places(view, scan) > 0.5


@each(
    "spec",
    [
        ViewSpec((9, 10, 11), place=Anchor()),
        ViewSpec((9, 10, 11), place=Elsewhere(), count=3, **WILD),
        ViewSpec((13, 14, 15), place=Whole(), **WILD),
        ViewSpec((1, 16, 16), place=Elsewhere(), count=3, **WILD),
        ViewSpec((40, 40, 40), **WILD),
        ViewSpec((12, 12, 12), spacing_mm=(1.5, 1.5, 1.5), **WILD),
    ],
)
@each("shape", [(20, 24, 22), (1, 30, 28)])
def test_every_voxel_is_where_its_affine_says_for_every_place(
    spec: ViewSpec, shape: tuple
) -> None:
    scan = Scan(Affine.of((2.0, 1.5, 1.8), (1000.0, -500.0, 0.0)), shape)
    shares = [
        _check_places(_make(spec, _coordinates(scan.affine, shape), scan, s), scan)
        for s in range(4)
    ]
    assert max(shares) > (0.2 if spec.size[0] == 1 or shape[0] > 1 else 0.01)


def test_a_group_without_changes_is_the_crop_itself() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2, 20, 24, 22))
    scan = Scan(Affine.of((2.0, 1.5, 1.8), (1e3, -5e2, 0.0)), (20, 24, 22))
    view = _make(ViewSpec((8, 10, 12)), data, scan)
    start = np.rint(scan.affine.inverse().apply(view.affine[0, 0, :3, 3].numpy()))
    z, y, x = start.astype(int)
    expected = data[:, z : z + 8, y : y + 10, x : x + 12]
    np.testing.assert_allclose(view.image[0, 0].numpy(), expected, atol=1e-4)
    assert view.valid.all()


def test_stored_numbers_become_normalised_intensities() -> None:
    stored = torch.tensor([-32768, -100, 0, 100, 32767], dtype=torch.int16)
    column = [torch.tensor([[v]]) for v in (0.01, 0.5, -0.4, 1.2)]
    found = Levels(*column).normalise(stored.reshape(1, 1, 1, 1, 1, 5))
    expected = torch.tensor([-0.4, -0.4, 0.5, 1.2, 1.2])
    torch.testing.assert_close(found.flatten(), expected)


def test_within_a_group_of_views_elsewhere_has_its_own_box() -> None:
    specs = {
        "far": ViewSpec((8,) * 3, place=Elsewhere(), count=2),
        "near": ViewSpec((4,) * 3, place=Within("far"), count=3),
    }
    assert [share.groups for share in share_blocks(specs)] == [("far",), ("near",)]
