"""The classical way, to compare with: SimpleITK's affine, then a B-spline."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch

from homolog.propagation.descriptors import Field, Seen
from homolog.propagation.matching import Grid, Mapping

_SEED = 7
# Nodes of the B-spline are about so far apart.
_NODES_MM = 50.0


def registered(a: Seen, b: Seen, *, spline: bool = True) -> Mapping:
    """The map of places of B to places of A, by mutual information of grey values.

    Args:
        a: The scan that is labelled (moving).
        b: The other (fixed).
        spline: Bent after the affine too.

    Returns:
        A displacement on a grid over B; the affine is part of it.

    Source: Mattes et al., PET-CT image registration in the chest using free-form
    deformations, TMI 2003, as in SimpleITK.
    """
    fixed, moving = _image(b), _image(a)
    start = sitk.CenteredTransformInitializer(
        fixed,
        moving,
        sitk.AffineTransform(3),
        sitk.CenteredTransformInitializerFilter.GEOMETRY,
    )
    whole = _optimised(fixed, moving, start, spline=False)
    if spline:
        moved = sitk.Resample(moving, fixed, whole, sitk.sitkLinear, 0.0)
        sides = np.array(fixed.GetSize()) * np.array(fixed.GetSpacing())
        mesh = [int(n) for n in np.clip(np.round(sides / _NODES_MM), 1, 10)]
        nodes = sitk.BSplineTransformInitializer(fixed, mesh)
        bent = _optimised(fixed, moved, nodes, spline=True)
        whole = sitk.CompositeTransform([whole, bent])
    return _as_mapping(whole, b)


def _image(scan: Seen) -> sitk.Image:
    """Grey values; world mm are x, y, z there."""
    affine = scan.image.affine
    image = sitk.GetImageFromArray(scan.image.values[0].cpu().numpy())
    image.SetSpacing([float(s) for s in affine.spacing_mm[::-1]])
    image.SetOrigin([float(v) for v in affine.matrix[:3, 3][::-1]])
    image.SetDirection(affine.direction[::-1, ::-1].ravel().tolist())
    return image


def _optimised(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, *, spline: bool
) -> sitk.Transform:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1 if spline else 0.05, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    thin = min(fixed.GetSize()) < 24  # a few thick slices are not thinned as much
    if spline:
        method.SetOptimizerAsLBFGSB(numberOfIterations=40)
        method.SetShrinkFactorsPerLevel([2, 1] if thin else [4, 2])
        method.SetSmoothingSigmasPerLevel([2, 1])
    else:
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1, 1] if thin else [4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def _as_mapping(whole: sitk.Transform, b: Seen) -> Mapping:
    steps = [max(s, 4.0) for s in b.image.affine.spacing_mm]
    grid = Grid.over(b.image.affine, b.image.shape, steps)
    affine = grid.affine
    filled = sitk.TransformToDisplacementField(
        whole,
        sitk.sitkVectorFloat64,
        [int(n) for n in grid.shape[::-1]],
        [float(v) for v in affine.matrix[:3, 3][::-1]],
        [float(s) for s in affine.spacing_mm[::-1]],
        affine.direction[::-1, ::-1].ravel().tolist(),
    )
    moves = np.moveaxis(sitk.GetArrayFromImage(filled)[..., ::-1], -1, 0)
    values = torch.from_numpy(np.ascontiguousarray(moves, np.float32))
    return Mapping(np.eye(4), Field(values, affine))
