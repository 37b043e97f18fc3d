"""Names that speak of label maps, and what remains of them without these words."""

from __future__ import annotations

import re

# Better word first: where a folder holds "seg" and "brainmask", seg is the label.
_LABEL_WORDS = (
    "seg", "segs", "segm", "segmentation", "segmentations", "dseg", "label", "labels",
    "lbl", "labelmap", "labelmaps", "gt", "groundtruth", "manual", "annotation",
    "annotations", "gtv", "ctv", "ptv", "lesion", "lesions", "roi", "rois", "contour",
    "contours", "mask", "masks",
)  # fmt: skip
_IMAGE_WORDS = (
    "image",
    "images",
    "img",
    "imgs",
    "scan",
    "scans",
    "volume",
    "vol",
    "orig",
)
_FOLDERS = {
    "label", "labels", "labelstr", "labelsts", "labelsval", "lbl", "lbls", "mask",
    "masks", "seg", "segs", "segmentation", "segmentations", "gt", "groundtruth",
    "ground_truth", "annotation", "annotations", "rois", "labelmaps",
}  # fmt: skip
_SEPARATORS = "_-. "


def is_label_folder(name: str) -> bool:
    """Whether a folder of this name holds label maps."""
    return name.lower() in _FOLDERS


def tokens(stem: str) -> list[str]:
    """Words of a name, in lower case."""
    return [t for t in re.split(r"[_\-. ]+", stem.lower()) if t]


def label_rank(stem: str) -> int | None:
    """How clearly a name says "label map": 0 is clearest; None when it does not.

    The word counts at either end of the name, with digits behind it (``mask2``) or
    letters before it (``brainmask``); a plain mask ranks last.
    """
    words = tokens(stem)
    ends = [words[-1], words[0]] if words else []
    ranks = [r for r in map(_rank, ends) if r is not None]
    return min(ranks) if ranks else None


def _rank(word: str) -> int | None:
    bare = word.rstrip("0123456789")
    if bare in _LABEL_WORDS:
        return 1 if bare.startswith("mask") else 0
    if re.fullmatch(r"[a-z]+(mask|seg)", bare):
        return 2
    return None


def bare_name(stem: str) -> str:
    """The name without its words for image or label, to pair one with the other.

    ``CT_image`` and ``CT_mask`` -> ``ct``; ``volume-12`` and ``segmentation-12`` ->
    ``12``; ``seg`` -> "". A channel number (``_0000``) is dropped as well.
    """
    words = tokens(re.sub(r"_\d{4}$", "", stem))
    kept = []
    for i, word in enumerate(words):
        bare = word.rstrip("0123456789")
        at_end = i in (0, len(words) - 1)
        if at_end and (bare in _IMAGE_WORDS or _rank(word) is not None):
            if word != bare:
                kept.append(word[len(bare) :])
            continue
        kept.append(word)
    return "_".join(kept)


def shorter_names(stem: str) -> list[str]:
    """The name cut before each separator, longest first: ``a_b_c`` -> ``a_b, a``."""
    cuts = [i for i, letter in enumerate(stem) if letter in _SEPARATORS and i]
    found = [stem[:i].rstrip(_SEPARATORS) for i in reversed(cuts)]
    return list(dict.fromkeys(f for f in found if f))
