"""An MR-like scan of the phantom anatomy: the same body, other grey values.

Only the look is imitated (fat bright, air and bone dark, a coil's uneven gain), so that
methods can be tried across modalities; no physics of a sequence is in it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from homolog.data.phantom import Phantom, make_phantom
from homolog.data.volume import Volume
from homolog.geometry.affine import Index, Triple

# Grey value of a tissue by its CT number: air, lung, fat, water, soft tissue, bone.
_HU = (-1000.0, -700.0, -110.0, -20.0, 40.0, 90.0, 200.0, 1000.0)
_GREY = (0.0, 25.0, 820.0, 160.0, 380.0, 460.0, 240.0, 60.0)
# What CT can hardly tell apart, MR can: gain by label.
_GAIN = {1: 1.1, 2: 0.75, 3: 0.85, 4: 0.85, 7: 0.6, 8: 0.8, 9: 0.2, 10: 0.25, 13: 1.5}


def make_mr_phantom(
    seed: int,
    shape: Index = (64, 80, 80),
    spacing_mm: Triple = (4.0, 4.0, 4.0),
    *,
    noise: float = 14.0,
) -> Phantom:
    """The patient ``make_phantom(seed)`` as an MR scan; labels and landmarks the same.

    Args:
        seed: Which patient.
        shape: Voxels (z, y, x).
        spacing_mm: Voxel size (z, y, x).
        noise: Standard deviation of the (Rician) noise, grey values.
    """
    phantom = make_phantom(
        seed, shape, spacing_mm, noise=4.0, name=f"phantom_{seed}_MR"
    )
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x3E]))
    grey = np.interp(phantom.volume.data[0], _HU, _GREY).astype(np.float32)
    for value, gain in _GAIN.items():
        grey[phantom.labels.data == value] *= gain
    coil = rng.standard_normal((3, 3, 3))
    gain_map = ndimage.zoom(
        coil, np.array(shape) / 3, order=3, grid_mode=True, mode="nearest"
    )
    grey *= np.exp(0.18 * gain_map / max(float(np.abs(gain_map).max()), 1e-6))
    real, imaginary = rng.normal(0.0, noise, (2, *shape))
    seen = np.hypot(grey + real, imaginary)
    data = np.clip(np.rint(seen), 0, 4095).astype(np.int16)[None]
    scan = phantom.volume
    volume = Volume(data, scan.affine, scan.name, "MR", scan.meta)
    return replace(phantom, volume=volume)
