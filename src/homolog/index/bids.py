"""Names and folders of BIDS data sets: what was made of which scan.

``derivatives/PIPELINE/sub-01/ses-02/anat/sub-01_ses-02_space-T1w_dseg.nii.gz`` is a
label map of ``sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz``.

Source: BIDS specification 1.10, "Derivatives" and "Segmentations".
"""

from __future__ import annotations

import re
from pathlib import Path

_DERIVED = ("derivatives", "derivative")
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+(_|$)")
# What a derived file may say beyond the scan it was made of.
_ADDED = ("space", "desc", "label", "res", "den", "hemi", "seg", "atlas", "rater")


def is_derived(file: Path, root: Path) -> bool:
    """Whether a file lies below ``derivatives`` of the source."""
    return any(p.lower() in _DERIVED for p in file.relative_to(root).parts[:-1])


def source_folder(file: Path, root: Path) -> Path | None:
    """Where the scan of a derived file lies; None for other files."""
    parts = file.relative_to(root).parts[:-1]
    for i, part in enumerate(parts):
        if part.lower() in _DERIVED:
            rest = parts[i + 1 :]
            first = next((j for j, p in enumerate(rest) if _SUBJECT.match(p)), None)
            return None if first is None else root.joinpath(*parts[:i], *rest[first:])
    return None


def same_run(label: str, scan: str) -> bool:
    """Whether two BIDS names are of one subject, session, acquisition and run.

    A suffix that the label keeps of its scan (``_T2w_seg-manual``) must be the scan's.

    Args:
        label: Name of a label map without suffix.
        scan: Name of a scan.
    """
    if not (_SUBJECT.match(label) and _SUBJECT.match(scan)):
        return False
    theirs, suffix = _entities(scan)
    own, _ = _entities(label)
    kept = {k: v for k, v in own.items() if k not in _ADDED}
    known = [w for w in label.split("_") if "-" not in w]
    others = [w for w in known[:-1] if w != suffix]  # the last word is its own suffix
    return kept == {k: v for k, v in theirs.items() if k not in _ADDED} and not others


def _entities(stem: str) -> tuple[dict[str, str], str]:
    """``sub-01_run-2_T1w`` -> ({"sub": "01", "run": "2"}, "T1w")."""
    words = stem.split("_")
    pairs = dict(word.split("-", 1) for word in words if "-" in word)
    return pairs, words[-1] if "-" not in words[-1] else ""
