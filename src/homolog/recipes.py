"""Where the numbers of a recipe come from, and the scans that a paper learns from."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from homolog.words import listed

# Origin -> the settings (``method.size``, ...) that come from it, parted by spaces. An
# origin begins with one of KINDS, then says where, or why.
Sources: TypeAlias = Mapping[str, str]
KINDS = ("paper", "code", "own")
_LONG = 28  # values are aligned up to so many letters
_NEAR = 0.01  # voxel sizes differ from the paper's, as a share


def leaves(tables: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of nested tables by its dotted name."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def origins(sources: Sources) -> dict[str, str]:
    """Setting -> where it is from.

    Raises:
        ValueError: An origin of no known kind, or a setting with two.

    Paper: All recipes.
    """
    found: dict[str, str] = {}
    for origin, names in sources.items():
        if origin.split(":")[0].split()[0] not in KINDS:
            raise ValueError(f"an origin begins with {listed(KINDS)}, got {origin!r}.")
        for name in names.split():
            if name in found:
                raise ValueError(f"{name} has two origins: {found[name]}, {origin}.")
            found[name] = origin
    return found


def told(recipe: Mapping[str, Any], sources: Sources) -> list[str]:
    """A line for each setting of a recipe: its value, and where it is from."""
    where = origins(sources)
    rows = [(name, _text(value)) for name, value in leaves(recipe)]
    wide, high = (max(map(len, column)) for column in zip(*rows, strict=True))
    high = min(high, _LONG)
    return [
        f"  {name:<{wide}}  {value:<{high}}  {where.get(name, '')}".rstrip()
        for name, value in rows
    ]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


# Paper: Alice A.1, window.
@dataclass(frozen=True)
class PaperScans:
    """How a paper prepares its scans.

    Attributes:
        source: Where it says so.
        window_hu: CT values kept; None: not said.
        spacing_mm: Voxel size z, y, x; None: not said.
    """

    source: str
    window_hu: tuple[float, float] | None = None
    spacing_mm: tuple[float, float, float] | None = None

    def differs(
        self,
        window_hu: tuple[float, float],
        spacing_mm: tuple[float, float, float] | None,
        modalities: Sequence[str],
    ) -> list[str]:
        """How a store differs, in a few words each; empty where it does not.

        Paper: MixCL 3.1, window.
        """
        found = []
        if self.window_hu and "CT" in modalities and window_hu != self.window_hu:
            low, high = (_text(v) for v in self.window_hu)
            own = " to ".join(map(_text, window_hu))
            found.append(f"CT values from {low} to {high} HU, not {own}")
        if self.spacing_mm is not None:
            pairs = zip(self.spacing_mm, spacing_mm or (0.0,) * 3, strict=True)
            if any(abs(a - b) > _NEAR * a for a, b in pairs):
                own = _text(spacing_mm) if spacing_mm else "each scan's own"
                found.append(
                    f"voxels of {_text(self.spacing_mm)} mm (z,y,x), not {own}"
                )
        return found

    def command(self, sources: Sequence[str], labels: Sequence[str], store: str) -> str:
        """The ``homolog prepare`` that makes a store as the paper's.

        Args:
            sources: Files of the scans.
            labels: Files of their label maps, where they have some.
            store: Folder of the store at hand.

        Paper: SAM window.
        """
        words = ["homolog", "prepare", _folder(sources, "SOURCE")]
        if labels and _folder(labels, "") != words[-1]:
            words += ["--labels", _folder(labels, "LABELS")]
        words += ["--out", f"{store.rstrip('/')}_paper"]
        if self.window_hu:
            low, high = self.window_hu
            words.append(f"--window-hu={low:g},{high:g}")
        if self.spacing_mm:
            words += ["--spacing", _text(self.spacing_mm)]
        return shlex.join(words)


def _folder(files: Sequence[str], unknown: str) -> str:
    """The folder that all files lie in."""
    try:
        shared = os.path.commonpath([os.path.dirname(file) for file in files if file])
    except ValueError:  # of none, or of several drives
        return unknown
    return shared or unknown
