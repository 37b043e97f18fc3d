"""What a file of a format that states its own axes and voxel size is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from homolog.geometry.affine import Affine, Index, Triple
from homolog.scans.formats import ScanHeader
from homolog.scans.paths import scan_stem
from homolog.scans.problems import SHEAR_LIMIT, Problem, frames_text, shear_text
from homolog.scans.volume import modality_of_name

# Millimetres per unit of length, as microscopes and scanners spell them.
_MM = {
    "angstrom": 1e-7, "å": 1e-7, "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
    "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3,
    "microns": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3, "mm": 1.0,
    "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0,
    "centimetre": 10.0, "m": 1000.0, "meter": 1000.0, "metre": 1000.0, "inch": 25.4,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stated:
    """A scan without its values.

    Attributes:
        shape: (D, H, W).
        affine: Voxel -> mm.
        dtype: Number type of the values.
        kind: As in ``ScanHeader``.
        channels: Numbers per voxel.
        frames: Volumes over time.
        problems: What the header shows.
    """

    shape: Index
    affine: Affine
    dtype: str
    kind: str
    channels: int = 1
    frames: int = 1
    problems: tuple[Problem, ...] = ()

    def header(self, path: Path) -> ScanHeader:
        """The scan's header, with the faults that follow from what is stated."""
        problems = list(self.problems)
        if self.kind in ("mgh", "zarr") and self.channels > 1:
            text = f"{self.channels} numbers per voxel, not one."
            problems.append(Problem("vector", text))
        if self.dtype.startswith("complex"):
            text = "complex numbers, not one real number per voxel."
            problems.append(Problem("complex", text))
        if self.frames > 1:
            problems.append(Problem("4d", frames_text(self.frames)))
        if self.affine.shear > SHEAR_LIMIT:
            problems.append(Problem("sheared", shear_text(self.affine.shear)))
        names = (scan_stem(path), path.parent.name, path.parent.parent.name)
        return ScanHeader(
            path, self.shape, self.channels, self.frames, self.affine, self.dtype,
            modality_of_name(*names), self.kind, {}, tuple(problems),
        )  # fmt: skip


def mm_of(unit: str) -> float | None:
    """Millimetres in a unit of length; None where it is none that is known."""
    return _MM.get(unit.strip().lower())


def sized_affine(sizes_mm: Triple | None) -> tuple[Affine, tuple[Problem, ...]]:
    """Affine of voxels of that size (z, y, x); of unknown size where None."""
    if sizes_mm is None:
        text = "no voxel size in this kind of file: lengths are in pixels."
        return Affine.identity(), (Problem("spacing_unknown", text, False),)
    return Affine.of(sizes_mm), ()
