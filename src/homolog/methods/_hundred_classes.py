"""Classes of whole scans that teach beside the clusters: one per scan, or several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homolog.data.findings import findings_of, has_several
from homolog.nn.standardise import Standardise


def names_of(targets: Sequence[str | None]) -> tuple[list[str], bool]:
    """Classes that scans name, and whether a scan may show several or none of them.

    They may where any scan has more than one (``effusion|nodule``).
    """
    known = [text for text in targets if text is not None]
    if any(map(has_several, known)):
        return sorted({name for text in known for name in findings_of(text)}), True
    return sorted(set(known)), False


class ClassHead(nn.Module):
    """Cross-entropy of the class, or of each finding, of scans where it is known.

    Args:
        width: Channels E of the vectors.
        names: Classes (K).
        several: A scan shows any of them or none.

    Source: Ghesu et al., 2022, section III-A.3, Eq. 6.
    Differs from the paper: the linear layer sees features standardised between scans;
        several findings of one scan are told one by one.
    """

    def __init__(self, width: int, names: Sequence[str], *, several: bool) -> None:
        super().__init__()
        self.names, self.several = tuple(names), several
        self.standard = Standardise(width)
        self.linear = nn.Linear(width, len(self.names))

    @property
    def trivial(self) -> float:
        """What a uniform prediction costs."""
        return math.log(2 if self.several else len(self.names))

    def targets(self, texts: Sequence[str | None]) -> list[int] | list[list[float]]:
        """What cards say -> ``View.target``: class or -1; or K numbers 0, 1 or -1."""
        if not self.several:
            known = {name: number for number, name in enumerate(self.names)}
            return [known.get(text or "", -1) for text in texts]
        rows = []
        for text in texts:
            shown = findings_of(text) if text is not None else ()
            rows.append(
                [-1.0 if text is None else float(n in shown) for n in self.names]
            )
        return rows

    def knows(self, text: str | None) -> bool:
        """Whether a scan of this class teaches."""
        return text is not None and (self.several or text in self.names)

    def forward(self, vectors: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Errors of a batch.

        Args:
            vectors: (B, V, E), crops of each scan.
            target: As ``targets`` numbers them, (B,) or (B, K).

        Returns:
            ``total`` (summed over the scans that are known, mean over their crops and
            findings), ``labelled`` (their number) and ``accuracy``.
        """
        known = target >= 0 if target.ndim == 1 else (target >= 0).all(1)
        plain = nn.functional.layer_norm(vectors, vectors.shape[-1:])
        seen = self.standard(plain, known[:, None].expand(vectors.shape[:2]))
        scores = self.linear(seen).float()
        mean = scores.mean(1)
        if self.several:
            wanted = target.clamp_min(0).float()
            error = nn.functional.binary_cross_entropy_with_logits(
                scores, wanted[:, None].expand_as(scores), reduction="none"
            ).mean((1, 2))
            right = ((mean > 0) == (wanted > 0)).float().mean(1)
        else:
            error = nn.functional.cross_entropy(
                scores.transpose(1, 2),
                target[:, None].expand(-1, scores.shape[1]),
                ignore_index=-1,
                reduction="none",
            ).mean(1)
            right = (mean.argmax(1) == target).float()
        labelled = known.sum()
        zero = torch.zeros_like(error)
        return {
            "total": torch.where(known, error, zero).sum(),
            "labelled": labelled,
            "accuracy": (right * known).sum() / labelled.clamp_min(1),
        }
