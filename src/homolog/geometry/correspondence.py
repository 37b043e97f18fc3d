"""Which places of two views show the same anatomy, from their affines alone.

Positions are composed in float64 and relative to the second view's origin. Borders of
boxes are held to a millionth of a token, so that rounding never decides a tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homolog.geometry.affine import Index
from homolog.geometry.sampling import constant

_TIE = 1e-6  # in tokens; rounding at world offsets of metres is below 1e-9
_POINTS = 16  # sample points per axis where two boxes are rotated to each other


def token_grid(size: Index, stride: int | Index) -> Index:
    """Tokens (d, h, w) of a view.

    Raises:
        ValueError: A side is no multiple of the stride.
    """
    steps = _triple(stride)
    if any(n % s for n, s in zip(size, steps, strict=True)):
        raise ValueError(
            f"a view of {tuple(size)} voxels has no whole tokens of {steps} voxels."
        )
    d, h, w = (n // s for n, s in zip(size, steps, strict=True))
    return d, h, w


def token_centres(
    size: Index, stride: int | Index, device: torch.device | None = None
) -> Tensor:
    """Centres in view voxels, (N, 3) float64 in z, y, x; the last axis runs fastest."""
    steps = _triple(stride)
    axes = [
        (torch.arange(n, dtype=torch.float64, device=device) + 0.5) * s - 0.5
        for n, s in zip(token_grid(size, steps), steps, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def token_positions_mm(affine: Tensor, size: Index, stride: int | Index) -> Tensor:
    """World places of token centres.

    Args:
        affine: (..., 4, 4) view voxel -> world mm.
        size: View size (D, H, W).
        stride: Voxels per token, one number or (z, y, x).

    Returns:
        (..., N, 3) float64 mm, z, y, x.
    """
    centres = token_centres(size, stride, affine.device)
    affine = affine.double()
    return centres @ affine[..., :3, :3].mT + affine[..., None, :3, 3]


def token_matches(
    affine_a: Tensor,
    affine_b: Tensor,
    size: Index,
    stride: int | Index,
    one_to_one: bool = False,
) -> Tensor:
    """Ground truth correspondence of the tokens of two views.

    Token n of a matches token m of b when n's centre falls into m's box and m's centre
    falls into n's box, each in the voxel frame of the view that owns the box. Tokens
    whose image leaves the other view match nothing.

    Args:
        affine_a: (..., 4, 4) voxel -> world mm of the first view.
        affine_b: (..., 4, 4) of the second.
        size: Size of both views (D, H, W).
        stride: Voxels per token, one number or (z, y, x).
        one_to_one: Keep only mutually nearest candidates. Half-open boxes tile a view,
            so a centre lies in one box only and the literal rule already has at most
            one partner per token; both settings give the same matrix.

    Returns:
        (..., N, N) bool; rows are tokens of a.

    Source: S2DC, Eq. 2-3.
    Differs from the paper: boxes are half open, [-s/2, s/2), where the paper's closed
    ones would count a tie twice.

    Paper: S2DC Eq. 2, 3.
    """
    del one_to_one  # holds by construction, see above
    centres = token_centres(size, stride, affine_a.device)
    a_in_b = _box_of(centres, relative(affine_a, affine_b), size, stride)
    b_in_a = _box_of(centres, relative(affine_b, affine_a), size, stride)
    index = torch.arange(len(centres), device=affine_a.device)
    forth = a_in_b[..., :, None] == index  # (..., N, M)
    back = b_in_a[..., None, :] == index[:, None]
    return forth & back


def token_partners(
    affine_a: Tensor, affine_b: Tensor, size: Index, stride: int | Index
) -> Tensor:
    """``token_matches`` as a list: never holds (N, N).

    Args:
        affine_a: (..., 4, 4) voxel -> world mm of the first view.
        affine_b: (..., 4, 4) of the second.
        size: Size of both views (D, H, W).
        stride: Voxels per token, one number or (z, y, x).

    Returns:
        (..., N) int64: the token of b that each token of a matches, -1 where none.
    """
    centres = token_centres(size, stride, affine_a.device)
    there = _box_of(centres, relative(affine_a, affine_b), size, stride)
    back = _box_of(centres, relative(affine_b, affine_a), size, stride)
    own = torch.arange(len(centres), device=affine_a.device)
    returned = back.gather(-1, there.clamp_min(0)) == own
    return torch.where((there >= 0) & returned, there, -1)


def nearest_tokens(
    affine_a: Tensor, affine_b: Tensor, size: Index, stride: int | Index
) -> tuple[Tensor, Tensor]:
    """The token of view b nearest to each token of view a.

    Rounds in b's own frame, which finds the nearest in millimetres as long as b's axes
    are perpendicular to each other, whatever its spacing; never holds (N, N) distances.

    Args:
        affine_a: (..., 4, 4) voxel -> world mm of the first view.
        affine_b: (..., 4, 4) of the second.
        size: Size of both views (D, H, W).
        stride: Voxels per token, one number or (z, y, x).

    Returns:
        Index (..., N) int64 of b's token; offset (..., N, 3) float64 mm (z, y, x) from
        a's token centre to b's. Tokens of a far outside b get b's border token and a
        long offset.

    Source: methods reference L 1 and L 3.
    """
    steps = constant(_triple(stride), affine_a.device)
    d, h, w = token_grid(size, stride)
    last = constant((d - 1, h - 1, w - 1), affine_a.device)
    mapping = relative(affine_a, affine_b)
    centres = token_centres(size, stride, affine_a.device)
    place = centres @ mapping[..., :3, :3].mT + mapping[..., None, :3, 3]
    cell = torch.round((place + 0.5) / steps - 0.5)
    cell = torch.minimum(cell.clamp_min(0), last)
    index = ((cell[..., 0] * h + cell[..., 1]) * w + cell[..., 2]).long()
    apart = (cell + 0.5) * steps - 0.5 - place
    return index, apart @ affine_b.double()[..., :3, :3].mT


def relative(affine_a: Tensor, affine_b: Tensor) -> Tensor:
    """Voxels of a -> voxels of b, (..., 4, 4) float64."""
    a, b = affine_a.double(), affine_b.double()
    inverse = torch.linalg.inv_ex(b[..., :3, :3]).inverse
    linear = inverse @ a[..., :3, :3]
    offset = inverse @ (a[..., :3, 3:] - b[..., :3, 3:])
    last = constant((0.0, 0.0, 0.0, 1.0), a.device).expand(*linear.shape[:-2], 1, 4)
    return torch.cat([torch.cat([linear, offset], -1), last], -2)


def _box_of(
    centres: Tensor, mapping: Tensor, size: Index, stride: int | Index
) -> Tensor:
    """Flat index of the token box each mapped centre falls into, -1 where none."""
    steps = constant(_triple(stride), centres.device)
    d, h, w = token_grid(size, stride)
    count = constant((d, h, w), centres.device)
    place = centres @ mapping[..., :3, :3].mT + mapping[..., None, :3, 3]
    cell = torch.floor((place + 0.5) / steps + _TIE)
    inside = ((cell >= 0) & (cell < count)).all(-1)
    flat = (cell[..., 0] * h + cell[..., 1]) * w + cell[..., 2]
    return torch.where(inside, flat, -1.0).long()


def overlap(affine_a: Tensor, size_a: Index, affine_b: Tensor, size_b: Index) -> Tensor:
    """Share of view a's volume that view b sees too.

    Exact when the two are turned by multiples of 90 degrees only; otherwise counted
    on 16 x 16 x 16 points of a, an error below 0.05 for boxes of like size.

    Args:
        affine_a: (..., 4, 4) voxel -> world mm; batch axes broadcast.
        size_a: Size of a (D, H, W).
        affine_b: (..., 4, 4).
        size_b: Size of b.

    Returns:
        (...) float64 in 0..1.
    """
    mapping = relative(affine_a, affine_b)
    linear, offset = mapping[..., :3, :3], mapping[..., :3, 3]
    extent_a = constant(size_a, linear.device)
    extent_b = constant(size_b, linear.device)
    centre = offset + (linear @ ((extent_a - 1) / 2)[:, None])[..., 0]  # a's, in b
    reach = (linear.abs() @ (extent_a / 2)[:, None])[..., 0]
    low = torch.maximum(centre - reach, torch.full_like(centre, -0.5))
    high = torch.minimum(centre + reach, extent_b - 0.5)
    shared = ((high - low).clamp_min(0) / (2 * reach)).prod(-1)
    fraction = (torch.arange(_POINTS, device=linear.device).double() + 0.5) / _POINTS
    cube = torch.stack(torch.meshgrid(fraction, fraction, fraction, indexing="ij"), -1)
    points = cube.reshape(-1, 3) * extent_a - 0.5
    place = points @ linear.mT + offset[..., None, :]
    counted = _inside(place, size_b).double().mean(-1)
    largest = linear.abs().amax(-1, keepdim=True)
    crossed = (linear.abs() > 1e-6 * largest).sum(-1)
    aligned = (crossed == 1).all(-1)
    return torch.where(aligned, shared, counted)


def _inside(place: Tensor, size: Index) -> Tensor:
    extent = constant(size, place.device)
    return ((place >= -0.5 - _TIE) & (place < extent - 0.5 - _TIE)).all(-1)


def _triple(stride: int | Index) -> Index:
    if isinstance(stride, int):
        return stride, stride, stride
    d, h, w = stride
    return d, h, w
