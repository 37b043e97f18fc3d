"""Swapped prediction: one view's code is predicted from the other views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from homolog.losses.precision import full_precision


@full_precision
def swapped_prediction(
    scores: Sequence[Tensor], codes: Mapping[int, Tensor], temperature: float = 0.1
) -> Tensor:
    """Cross-entropy between the code of a view and the prediction of every other one.

    Args:
        scores: Per view, cosines of samples and prototypes (B, K).
        codes: View number -> its codes (B, K), rows sum to 1; views without a code
            only predict.
        temperature: Divides the cosines of the prediction.

    Returns:
        Scalar, the mean over pairs of views and over samples; ln K where predictions
        are uniform, whatever the codes. With two views half of the paper's sum.

    Raises:
        ValueError: Fewer than two views, or no code.

    Source: Caron et al., NeurIPS 2020 (SwAV), Eq. 2 and section 3.2 (multi-crop);
    Joint, Eq. 3 and 11; Hundred Million, Eq. 1.
    Differs from the paper: Joint prints Eq. 11 unswapped, which has nothing to do with
    agreement of views.
    """
    if len(scores) < 2 or not codes:
        raise ValueError(
            f"swapped prediction needs two views and a code, got {len(scores)} views "
            f"and {len(codes)} codes."
        )
    logs = [torch.log_softmax(s / temperature, dim=1) for s in scores]
    terms = [
        -(code * log).sum(dim=1).mean()
        for view, code in codes.items()
        for other, log in enumerate(logs)
        if other != view
    ]
    return torch.stack(terms).mean()
