"""From open scans and their paint to a head: what the panel and the command call.

numpy, scipy and scikit-learn only: a window may call it in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from homolog.config import check
from homolog.data.volume import LabelMap
from homolog.tasks._few_advice import warnings_of
from homolog.tasks._few_head import Head, Samples, fit_head, take_samples
from homolog.tasks._few_scan import FewScan, Paint, painted, simple_spec
from homolog.tasks._few_score import FewScore, leave_out_score
from homolog.tasks._few_settings import FewClass, FewConfig

# Share of the paint that lies in the body where only the body is meant.
_WITHIN = 0.95


@dataclass(frozen=True, eq=False)
class Learnt:
    """A fitted head and what it was fitted to.

    Attributes:
        head: Ready to predict.
        samples: The painted voxels used.
        paints: All painted voxels, scan by scan.
        classes: All painted classes.
        warnings: Plain sentences about the paint.
        config: As it was fitted.
    """

    head: Head
    samples: Samples
    paints: tuple[Paint, ...]
    classes: tuple[FewClass, ...]
    warnings: tuple[str, ...]
    config: FewConfig

    def score(self) -> FewScore:
        """The left-out score; fits up to five more heads."""
        return leave_out_score(self.samples, self.classes, self.head.spec, self.config)

    def counts(self) -> dict[int, int]:
        """Painted value -> painted voxels of all scans."""
        values = np.concatenate([p.values for p in self.paints])
        found, counts = np.unique(values, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))


def learn(
    scans: Sequence[FewScan],
    labels: Sequence[LabelMap],
    classes: Sequence[FewClass],
    config: FewConfig | None = None,
) -> Learnt:
    """Fit a head to painted voxels of one or several scans.

    Args:
        scans: With features of one encoder, or all without.
        labels: Their painted labels, in the same order, each on its scan's own grid.
        classes: What the painted values mean, see ``few_classes``.
        config: Settings.

    Raises:
        UnusableInput: Nothing painted, a label map of another grid, features of
            different encoders, or a painted value without a class.
        ConfigError: A setting out of range.
    """
    config = config or FewConfig()
    check(config)
    paints = tuple(
        painted(scan, paint, number)
        for number, (scan, paint) in enumerate(zip(scans, labels, strict=True))
    )
    spec = simple_spec(scans, paints, config)
    samples = take_samples(scans, paints, classes, spec, config)
    head = fit_head(samples, classes, spec, config, scans[0].encoder_id)
    if config.body_only and _painted_in_body(paints, classes):
        head = replace(head, body_only=True)
    told = tuple(warnings_of(scans, paints, classes))
    return Learnt(head, samples, paints, tuple(classes), told, config)


def _painted_in_body(paints: Sequence[Paint], classes: Sequence[FewClass]) -> bool:
    """Whether all that was painted, but the background, lies in the body.

    A few voxels beside it are strokes that went over the skin.
    """
    organs = [c.value for c in classes if not c.background]
    within = [p.in_body[np.isin(p.values, organs)] for p in paints]
    found = np.concatenate(within)
    return bool(found.size) and bool(found.mean() >= _WITHIN)


def warm_up() -> None:
    """Load what the first fit needs, some seconds long; for a thread of its own."""
    import sklearn.linear_model  # noqa: F401


def painted_values(labels: Sequence[LabelMap]) -> list[int]:
    """Values painted in any of the label maps, sorted."""
    found: set[int] = set()
    for paint in labels:
        found |= set(np.unique(paint.data).tolist())
    return sorted(v for v in found if v > 0)
