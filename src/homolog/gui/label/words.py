"""What the Label tab says: hints, warnings, the score. No Qt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from homolog.words import counted

START = (
    "Paint a few voxels of each structure, and of background: muscle, fat, the air "
    "around. 10-20 per class is a good start."
)
COMPUTING = "Features are being computed; you can go on painting."
NO_GROUND = (
    "Nothing is painted as background, so every voxel becomes one of your structures."
)
NO_SCAN = "No scan is open. Drop a NIfTI, MHA or NRRD file or a DICOM folder here."
IN_3D = "Painting needs the 2D view: press Ctrl+Y or the 2D button."
COMPUTE = (
    "This model's features of the scan are computed once and kept. Press Compute "
    "features, or choose Intensity only, which works at once."
)
MORE = (
    "Paint where the prediction is wrong. Where to click next leads to what is "
    "unknown, then to the most uncertain place."
)
# All that the hint may say: room is kept for the longest.
HINTS = (START, COMPUTING, IN_3D, COMPUTE, MORE)
_STATES = {
    "waiting": "Waiting for the end of your stroke ...",
    "fitting": "Learning from the paint ...",
    "predicting": "Predicting the whole scan ...",
}


def state_line(state: str, problem: str, timing: str) -> str:
    """What is being done, or what came of it."""
    if problem:
        return f"⚠ {problem[0].upper()}{problem[1:]}"
    if state == "predicting" and timing:
        return f"{timing.split(' (')[0].rstrip('.')}. Predicting the whole scan ..."
    return _STATES.get(state, timing)


def warning_lines(warnings: Sequence[str], *, has_ground: bool = True) -> str:
    """A sign and a sentence each.

    Args:
        warnings: About the paint.
        has_ground: Whether some of it is background.
    """
    found = list(warnings) if has_ground else [*warnings, NO_GROUND]
    return "\n".join(f"⚠ {text}" for text in found)


def score_line(score: Any) -> str:
    """The left-out score, in words."""
    if score is None:
        return ""
    if score.accuracy is None:
        return f"No left-out score yet: {score.reason}"
    text = (
        f"Left-out score: {score.accuracy:.0%} of {score.voxels} voxels of strokes "
        "that were left out in turn were told right. It tells of places like those you "
        "painted, not of the whole scan."
    )
    weak = sorted((r, name) for name, r in score.recall.items() if r < 0.8)
    if weak:
        some = ", ".join(f"{name} {r:.0%}" for r, name in weak[:3])
        text += f" Weakest: {some}."
    if score.unscored:
        names = ", ".join(score.unscored)
        text += f" Painted in one place only, so not in the score: {names}."
    return text


NOT_CALIBRATED = (
    "Nothing is called unknown yet: that takes a class painted in a second place."
)


def unknown_line(millilitres: float | None, *, wanted: bool) -> str:
    """How much is unknown, and what it means.

    Args:
        millilitres: In the scan in front; None: nothing can be unknown.
        wanted: Whether anything may be called so.
    """
    if not wanted:
        return ""
    if millilitres is None:
        return NOT_CALIBRATED
    if millilitres <= 0:
        return "Nothing is unknown: all of it is like some of your paint."
    amount = f"{millilitres:,.0f}" if millilitres >= 10 else f"{millilitres:.1f}"
    return (
        f"Wine red: unknown, {amount} ml, too unlike all paint. "
        "A stroke there tells what it is."
    )


def next_line(
    likely: Sequence[str], uncertainty: float, scan: str, *, unknown: bool = False
) -> str:
    """Where to paint, and why."""
    if unknown:
        return f"Unknown in {scan}: too unlike all paint. Paint there what it is."
    first, second = likely
    return (
        f"Most uncertain in {scan}: {first} or {second}? ({uncertainty:.0%} unsure). "
        "Paint there what it is."
    )


def count_line(voxels: int) -> str:
    """How much of a scan is painted."""
    if not voxels:
        return "nothing painted yet"
    return f"{counted(voxels, 'voxel')} painted"
