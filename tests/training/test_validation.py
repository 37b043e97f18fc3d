"""Which weights a validation keeps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from homolog.model_files.folder import load_best
from homolog.training.validation import Validator


def test_of_equal_scores_the_later_weights_are_kept(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    validator = Validator(module, tmp_path, lambda done: {}, "auc")
    kept = []
    for step, score in enumerate((0.5, 1.0, 0.9, 1.0, math.nan, 0.99), start=1):
        nn.init.constant_(module.weight, step)
        if validator.keep(step, {"auc": score}).is_best:
            kept.append(step)
    assert kept == [1, 2, 4]
    best = load_best(tmp_path)
    assert best is not None
    assert torch.equal(best[0]["weight"], torch.full((1, 1), 4.0))


def test_lower_is_better_where_it_is_said(tmp_path: Path) -> None:
    validator = Validator(nn.Linear(1, 1), tmp_path, lambda done: {}, "-error")
    told = [validator.keep(n, {"error": e}).is_best for n, e in ((1, 3.0), (2, 4.0))]
    assert told == [True, False]
    with pytest.raises(ValueError, match="error"):
        validator.keep(3, {"auc": 1.0})
