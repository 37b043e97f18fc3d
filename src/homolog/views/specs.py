"""What can be asked for: checks of view groups against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homolog.views.view import (
    Elsewhere,
    Intensity,
    Matched,
    Same,
    ViewSpec,
    Within,
)


@dataclass(frozen=True)
class Phase:
    """A stretch of a training that looks at some of the groups only.

    Attributes:
        share: Of the whole training, 0..1; those of all phases sum to 1.
        groups: What is made in it; nothing else is read.
        samples: Share of every batch's samples that is made, at least two of them.
        volumes: Only scans of several slices.
    """

    share: float
    groups: tuple[str, ...]
    samples: float = 1.0
    volumes: bool = False


def phase_at(phases: Sequence[Phase], progress: float) -> int:
    """Number of the phase at a share of the training done, 0..1."""
    end = 0.0
    for number, phase in enumerate(phases):
        end += phase.share
        if progress < end - 1e-9:
            return number
    return len(phases) - 1


def check_phases(phases: Sequence[Phase], specs: Mapping[str, ViewSpec]) -> None:
    """Raise ValueError where phases do not fill a training with known groups."""
    total = sum(phase.share for phase in phases)
    if abs(total - 1) > 1e-6 or any(phase.share <= 0 for phase in phases):
        shares = ", ".join(f"{phase.share:g}" for phase in phases)
        raise ValueError(
            f"the shares of phases must be above 0 and sum to 1: {shares}."
        )
    for phase in phases:
        check_specs({name: specs[name] for name in phase.groups})


def check_specs(specs: Mapping[str, ViewSpec]) -> None:
    """Raise ValueError where a group cannot be drawn."""
    if not specs:
        raise ValueError("at least one group of views is needed, got none.")
    if len({spec.boxes for spec in specs.values() if spec.labels}) > 1:
        raise ValueError("all view groups with labels must ask for the same boxes.")
    for position, (name, spec) in enumerate(specs.items()):
        if spec.boxes and not spec.labels:
            raise ValueError(f"view group {name!r} asks for boxes without labels.")
        if spec.count < 1 or min(spec.size) < 1:
            raise ValueError(
                f"view group {name!r} needs a count and sizes of at least 1, "
                f"got count {spec.count}, size {spec.size}."
            )
        if spec.scale[0] <= 0 or spec.scale[0] > spec.scale[1]:
            raise ValueError(
                f"view group {name!r} needs 0 < scale low <= high, got {spec.scale}."
            )
        changes = spec.intensity
        if changes.bands_probability > 0 and changes.bands_reference is None:
            raise ValueError(
                f"view group {name!r} is to change energy bands, but has no energies "
                "of reference images (Intensity.bands_reference)."
            )
        earlier = list(specs)[:position]
        if isinstance(spec.place, Within) and spec.place.group not in earlier:
            raise ValueError(
                f"view group {name!r} lies within {spec.place.group!r}, which must "
                f"come earlier; earlier groups: {', '.join(earlier) or 'none'}."
            )
        if isinstance(spec.place, Same):
            _check_twin(name, spec, spec.place.group, specs, earlier)
        if isinstance(spec.place, Within) and is_partner(specs, name):
            raise ValueError(f"view group {name!r} cannot lie within a partner's view.")


def _check_twin(
    name: str,
    spec: ViewSpec,
    other: str,
    specs: Mapping[str, ViewSpec],
    earlier: Sequence[str],
) -> None:
    if other not in earlier:
        raise ValueError(
            f"view group {name!r} shows the same as {other!r}, which must come "
            f"earlier; earlier groups: {', '.join(earlier) or 'none'}."
        )
    shown = specs[other]
    fields = ("size", "count", "spacing_mm")
    differing = [f for f in fields if getattr(spec, f) != getattr(shown, f)]
    if differing or isinstance(shown.place, Same) or shown.intensity != Intensity():
        what = ", ".join(differing) or "place or intensity changes"
        raise ValueError(
            f"view group {name!r} cannot show the same as {other!r}: that group must "
            "stand for itself, without intensity changes, and both must agree in size, "
            f"count and spacing (not right: {what})."
        )


def is_partner(specs: Mapping[str, ViewSpec], name: str) -> bool:
    """Whether a group is cut from the other patient's scan."""
    place = specs[name].place
    while isinstance(place, Within | Same):
        place = specs[place.group].place
    return isinstance(place, Matched | Elsewhere) and place.partner
