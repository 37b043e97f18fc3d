"""What a few-voxel model is told: settings, classes. No torch here."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homolog.config import option
from homolog.errors import UnusableInput

# Okabe and Ito's colours without black and grey, told apart by the colour-blind.
_COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
_GREY = "#999999"


@dataclass(frozen=True)
class FewConfig:
    """How a few painted voxels become a model."""

    head: str = option(
        "logistic",
        "logistic regression, or the vote of the nearest painted voxels (knn)",
        choices=("logistic", "knn"),
    )
    strength: float = option(
        0.3,
        "how closely logistic regression follows the paint (C); less is smoother",
        minimum=1e-4,
        maximum=1e4,
    )
    neighbours: int = option(5, "painted voxels that vote (knn)", minimum=1)
    position: bool = option(True, "use the place in the body as a feature")
    smoothing_mm: tuple[float, ...] = option(
        (),
        "widths (sigma) of the smoothed intensities; empty: 0, 1 and 2 voxels of the "
        "first scan",
        unit="mm",
        minimum=0.0,
        maximum=50.0,
    )
    body_only: bool = option(
        True,
        "label nothing outside the body; has no effect where organs are painted there",
    )
    per_class: int = option(
        4000, "painted voxels of a class that are used, at most", minimum=1
    )
    seed: int = option(0, "of the choice among more voxels", minimum=0, advanced=True)


@dataclass(frozen=True)
class FewClass:
    """One class of the paint.

    Attributes:
        value: In the painted labels, and in the prediction.
        name: For people.
        colour: ``#rrggbb``.
        background: Predicted as 0: what is none of the other classes.
    """

    value: int
    name: str
    colour: str
    background: bool = False

    @property
    def written(self) -> int:
        """Its value in predictions."""
        return 0 if self.background else self.value


def few_classes(
    values: Sequence[int],
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, str] | None = None,
    background: int | None = None,
) -> tuple[FewClass, ...]:
    """The classes of painted values, sorted by value.

    Args:
        values: Painted values, positive.
        names: Value -> name; ``label 3`` where there is none.
        colours: Value -> ``#rrggbb``; a colour of our own where there is none.
        background: Value whose paint means none of the other classes.

    Raises:
        UnusableInput: The background is a value that nobody painted.
    """
    names, colours = names or {}, colours or {}
    known = sorted(set(values))
    if background is not None and background not in known:
        raise UnusableInput(
            f"the background is to be label {background}, but the painted labels are "
            f"{', '.join(map(str, known)) or 'none'}."
        )
    return tuple(
        FewClass(
            value,
            names.get(value)
            or ("background" if value == background else f"label {value}"),
            colours.get(value) or (_GREY if value == background else _colour(place)),
            value == background,
        )
        for place, value in enumerate(known)
    )


def _colour(place: int) -> str:
    if place < len(_COLOURS):
        return _COLOURS[place]
    # the golden angle keeps later hues apart
    parts = colorsys.hsv_to_rgb(place * 0.618034 % 1.0, 0.65, 0.9)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
