"""How places are written for people, and read back.

Inside, everything is z, y, x. People know LPS as x, y, z: whatever a person reads says
so, here and nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homolog.geometry.affine import Triple


AXES_NAMED = "z, y, x of LPS"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NAMED = re.compile(rf"([xyz])\s*[=:]?\s*({_NUMBER})", re.IGNORECASE)


def place_text(mm: Iterable[Any], digits: int | None = 1) -> str:
    """``x 1.0, y 2.0, z 3.0 mm (LPS)``; ``named_numbers`` reads it.

    Args:
        mm: World position (z, y, x), LPS.
        digits: Behind the point; None writes all there are.
    """
    return f"{_lettered('xyz', tuple(mm)[::-1], digits)} mm (LPS)"


def place_numbers(mm: Iterable[Any], digits: int = 1) -> str:
    """``1.0, 2.0, 3.0``: x, y, z alone, for a column whose title names them.

    Args:
        mm: World position (z, y, x), LPS.
        digits: Behind the point.
    """
    return ", ".join(_number(v, digits) for v in tuple(mm)[::-1])


def voxel_text(index: Iterable[Any], digits: int = 1) -> str:
    """``z 3, y 2, x 1``: an index into an array, as arrays are indexed.

    Args:
        index: Along the array's own axes, slowest first.
        digits: Behind the point, where it is no whole voxel.
    """
    whole = all(abs(float(v) - round(float(v))) < 0.5 * 10**-digits for v in index)
    return _lettered("zyx", tuple(index), 0 if whole else digits)


def named_numbers(text: str) -> Triple | None:
    """Three numbers that each name their axis, in whatever order, as z, y, x.

    ``x=1, y=2, z=3`` and what ``place_text`` and ``voxel_text`` write.

    Returns:
        (z, y, x), or None where the text is anything else.
    """
    rest = re.sub(r"\s*(mm)?\s*(\(LPS\)|LPS)?\s*$", "", text, flags=re.IGNORECASE)
    found = _NAMED.findall(rest)
    left = _NAMED.sub("", rest)
    named = {axis.lower(): float(number) for axis, number in found}
    if len(found) != 3 or len(named) != 3 or left.strip(" ,;"):
        return None
    return named["z"], named["y"], named["x"]


def _lettered(axes: str, values: Sequence[Any], digits: int | None) -> str:
    return ", ".join(
        f"{axis} {_number(value, digits)}"
        for axis, value in zip(axes, values, strict=True)
    )


def _number(value: Any, digits: int | None) -> str:
    number = float(value)
    if digits is None or not math.isfinite(number):
        return repr(number)
    # No "-0.0": a person reads it as a mistake.
    return f"{round(number, digits) + 0.0:.{digits}f}"
