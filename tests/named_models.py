"""Models of tests' own in the library, and among those that come with the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from homolog.model_files import library


def keep_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """An empty library and nothing shipped: their folders, and settings of its own."""
    own, shipped = tmp_path / "library", tmp_path / "shipped"
    monkeypatch.setenv("HOMOLOG_MODELS", str(own))
    monkeypatch.setenv("HOMOLOG_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setattr(library, "ENCODERS", shipped)
    return own, shipped


def put_model(folder: Path, **more: Any) -> Path:
    """A model folder whose weights are a few bytes: to be listed, not to be loaded."""
    folder.mkdir(parents=True)
    (folder / "encoder.safetensors").write_bytes(b"weights of " + folder.name.encode())
    content = (folder / "encoder.safetensors").read_bytes()
    card = {
        "kind": "encoder", "method": "mae",
        "backbone": {"name": "resunet", "config": {}}, "modalities": {"CT": 3},
        "cases": 3, "steps": 40, "weights": "encoder.safetensors",
        "sha256": {"encoder.safetensors": hashlib.sha256(content).hexdigest()},
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(card | more))
    return folder
