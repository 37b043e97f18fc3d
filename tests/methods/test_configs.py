"""Settings that an older version wrote into a run are read, and mean the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homolog.config import config_hash, from_dict, to_dict
from homolog.methods import METHODS

# The recipes ``paper`` as they were (with what were defaults then and are not now), and
# hashes of them, of before their settings had a base.
BEFORE = json.loads(
    (Path(__file__).parent / "paper_recipes_before.json").read_text(encoding="utf-8")
)
HASHES = {
    "alice": "73b39fcf1bcbd230",
    "anatomical_embedding": "2a2ce8f305aff023",
    "hundred_million": "4b841aa0de978f96",
    "joint": "005834114d17463f",
    "mae": "26c3f302f82c5887",
    "mixcl": "26f38d7692a0b220",
    "s2dc": "9e539bbdbd6a7df0",
    "swav": "c6577af23a9121d0",
}

# Settings that came later, and what they are where a run does not name them.
LATER = {
    "alice": {
        "best_share": 1.0, "negatives": "all", "target_mask_ratio": 0.0,
        "predict": "voxels", "alignment": "casa", "code_temperature": 0.1,
        "target_code_temperature": 0.04,
    },
    "anatomical_embedding": {
        "fine_from": "pyramid", "weight_reconstruction": 0.0, "mask_ratio": 0.6,
        "changes": "all", "noise_std": [0.0, 0.05], "blur_voxels": [0.5, 1.0],
        "synthetic_contrast": 0.0, "bias_field": 0.0, "thick_slices": 0.0,
    },
    "hundred_million": {
        "bands_of": "crop", "bands_modalities": [], "shift_by_range": False,
    },
    "mae": {"decoder": "light"},
    "s2dc": {
        "tokens": "encoder", "fine_stride": 2, "fine_tokens": 512, "weight_fine": 1.0,
        "weight_reconstruction": 0.0, "mask_ratio": 0.6,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HASHES))
def test_a_run_of_before_has_the_same_settings(name: str) -> None:
    cls = METHODS.get(name)
    config = from_dict(cls.Config, BEFORE[name])
    later = LATER.get(name, {})
    settings = to_dict(config)
    assert {key: settings.pop(key) for key in later} == later
    assert config_hash(settings) == HASHES[name]
