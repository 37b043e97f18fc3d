"""Small configurations, derived from each backbone's own settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from homolog.backbones import BACKBONES, build
from homolog.backbones.base import Backbone

# Names that settings of width and depth go by, and a small value of the same kind.
_SMALL = {
    "feature_size": 12, "channels": (8, 16, 32), "hidden": 24, "inner": 48, "layers": 4,
    "image_size": (32, 32, 32), "window": (3, 3, 3),
    "widths": (8, 16, 32), "stage_blocks": (1, 2, 1),
    "filters": 8, "blocks": (1, 2, 1),
}  # fmt: skip
# Where those do not go together.
_OWN: dict[str, dict[str, Any]] = {
    "primus": {"heads": 2},
    "resunet": {"blocks": 1},
}


def make_small(name: str, **overrides: Any) -> Backbone:
    """A backbone that runs in milliseconds; small values it does not know are left."""
    usual = BACKBONES.get(name).Config()
    known = {f.name: getattr(usual, f.name) for f in dataclasses.fields(usual)}
    settings = {k: v for k, v in _SMALL.items() if k in known} | _OWN.get(name, {})
    stages = {len(known[k]) for k in ("channels", "widths") if k in known}
    # Whatever else has one entry a stage loses the last stages too.
    for key, value in known.items():
        if isinstance(value, tuple) and len(value) in stages and len(value) > 3:
            settings.setdefault(key, value[:3])
    torch.manual_seed(0)
    return build(name, settings | overrides)


@pytest.fixture
def small() -> Callable[..., Backbone]:
    return make_small


@pytest.fixture(params=BACKBONES.names())
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return make_small(request.param)
