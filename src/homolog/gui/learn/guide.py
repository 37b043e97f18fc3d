"""What each method and task is best for, and what it takes; no Qt here.

For the eye: how they work stands in their own texts, which the window shows as tips.
Times are those of ``docs/measured.md`` for the recipe ``cpu``; the button Estimate
measures them on the machine at hand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """Three answers to "which one do I take?".

    Attributes:
        best_for: A wish of the user, after "Best".
        data: What is needed.
        time: How long it takes.
    """

    best_for: str
    data: str
    time: str

    @property
    def text(self) -> str:
        """Three short lines."""
        return f"Best {self.best_for}.\nData: {self.data}.\nTime: {self.time}."


_MINUTES = "minutes on two cores, hours on a GPU"
METHODS = {
    "anatomical_embedding": Guide(
        "to find the same place in other scans: similarity, landmarks, carried labels",
        "scans of one part of the body, of 8 people or more; no labels",
        "about 40 min on two cores",
    ),
    "s2dc": Guide(
        "to segment later, when few scans are labelled",
        "tens of volumes or more; no labels",
        _MINUTES,
    ),
    "mae": Guide(
        "as a simple first try on volumes of any kind",
        "tens of scans or more; no labels",
        _MINUTES,
    ),
    "alice": Guide(
        "where all scans show one part of the body in different people",
        "tens of volumes, no labels, and an anatomical embedding trained before",
        _MINUTES,
    ),
    "mixcl": Guide(
        "to use several labelled data sets, each with classes of its own",
        "stores with label maps; scans without labels help, too",
        "about 10 min on two cores, hours on a GPU",
    ),
    "hundred_million": Guide(
        "for one model of X-rays, CT, MR and PET",
        "hundreds of images or volumes; classes, labels and boxes are used if given",
        "about 10 min on two cores, hours to days on a GPU",
    ),
    "joint": Guide(
        "for pictures and volumes together, to classify later",
        "hundreds of images and slices; no labels",
        "about 15 min on two cores, hours on a GPU",
    ),
    "swav": Guide(
        "as a yardstick for Joint and Hundred Million",
        "hundreds of images; no labels",
        _MINUTES,
    ),
}
TASKS = {
    "segment": Guide(
        "to name every voxel: organs, tumours",
        "a few scans with label maps; twenty are good",
        "5 min on two cores show whether it works",
    ),
    "classify": Guide(
        "to tell what a whole scan or X-ray shows",
        "a table with a class for each; tens of each class",
        _MINUTES,
    ),
    "detect": Guide(
        "to find boxes around findings or organs",
        "tens of scans with boxes, or with label maps",
        _MINUTES,
    ),
    "translate": Guide(
        "to make one sequence of a case from others",
        "tens of cases that have both",
        _MINUTES,
    ),
}


def guide_to(group: str, name: str) -> str:
    """The three lines for an entry, or "" for one that nobody wrote about.

    Args:
        group: ``methods`` or ``tasks``.
        name: Of the method or task.
    """
    found = (METHODS if group == "methods" else TASKS).get(name)
    return "" if found is None else found.text
