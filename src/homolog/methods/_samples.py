"""Numbers of samples, for what a method remembers of each: a scan, or a part of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homolog.geometry.affine import Index
from homolog.geometry.sampling import constant
from homolog.views.view import View


def sample_count(cases: int, bins: Index) -> int:
    """How many numbers ``sample_numbers`` gives out."""
    return cases * math.prod(bins)


def sample_numbers(view: View, bins: Index) -> Tensor:
    """(B,) int64: the number of the scan times its parts, plus that of the part.

    Args:
        view: The group whose first view says where the sample lies.
        bins: Parts of a scan along z, y, x; (1, 1, 1) where a scan is one sample.

    Raises:
        ValueError: There are parts, but the view does not know where it lies.
    """
    parts = math.prod(bins)
    if parts == 1:
        return view.case
    if view.where is None:
        raise ValueError(f"{parts} parts of a scan need views that know their place.")
    counts = constant(bins, view.where.device, torch.int64)
    part = (view.where[:, 0] * counts).long().clamp_min(0).minimum(counts - 1)
    z, y, x = part.unbind(1)
    return view.case * parts + (z * bins[1] + y) * bins[2] + x
