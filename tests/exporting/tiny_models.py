"""Models of random weights for the tests of exporting: nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from homolog.backbones import build
from homolog.config import to_dict
from homolog.model_files.folder import save_model
from homolog.tasks.segment.task import Segment, SegmentConfig

LEARNT = {"smallest": [8.0, 8.0, 8.0], "largest": [8.0, 8.0, 8.0]}


def segmenter(
    folder: Path,
    name: str = "resunet",
    settings: dict[str, Any] | None = None,
    **told: Any,
) -> Path:
    """A model folder; ``told`` replaces parts of its spec and the modality."""
    modality = told.pop("modality", "CT")
    channels = told.get("channels", 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {"channels": [8, 16, 16], "in_channels": channels}
        backbone = build(name, config if settings is None else settings)
        flat = backbone.planar()
        spec = {
            "window": [16, 24, 24],
            "divisor": list(flat.size_divisor),
            "smallest": [16, 16, 16],
            "overlap": 0.5,
            "slicewise": flat.spatial_dims == 2,
            "channels": channels,
            "modalities": [modality],
            "label_values": [0, 2, 5],
            "label_names": {"2": "liver", "5": "spleen"},
            "flip": [0.0, 0.0, 0.0],
            **told,
        }
        network = Segment(SegmentConfig()).network(backbone, spec)
        head = network.head
        assert isinstance(head.bias, torch.Tensor)
        torch.nn.init.zeros_(head.bias)  # so that no class is everywhere
    card = {
        "kind": "segment",
        "backbone": {"name": name, "config": to_dict(backbone.config)},
        "encoder": {"source": "/home/someone/runs/pre", "method": "mae"},
        "preprocessing": {"modality": modality},
        "learnt_spacing_mm": LEARNT,
        "task_config": to_dict(SegmentConfig()),
        "task_spec": spec,
        "label_names": spec["label_names"],
        "cases": {"train": ["a", "b"], "val": []},
        "steps": 3,
        "complete": True,
        "licence": "CC BY 4.0, as its scans",
    }
    return save_model(folder, network.state_dict(), card, "model")


def classifier(folder: Path) -> Path:
    """Three classes of whole scans."""
    from homolog.tasks.classify.space import ClassifyConfig
    from homolog.tasks.classify.task import Classify

    spec = {
        "window": [16, 24, 24],
        "channels": 1,
        "modalities": ["CT"],
        "classes": ["none", "cyst", "tumour"],
        "several": False,
        "slices": 0,
        "by_slice": False,
        "stacked": None,
        "types": [],
    }
    return _other(folder, "classify", Classify(ClassifyConfig()), spec)


def translator(folder: Path) -> Path:
    """CT made of CT."""
    from homolog.tasks.translate.task import Translate, TranslateConfig

    spec = {
        "window": [16, 24, 24],
        "divisor": [8, 8, 8],
        "smallest": [16, 16, 16],
        "overlap": 0.5,
        "slicewise": False,
        "channels": 1,
        "modalities": ["CT"],
        "channel_modalities": ["CT"],
        "residual": False,
        "flip": [0.0, 0.0, 0.0],
    }
    return _other(folder, "translate", Translate(TranslateConfig()), spec)


def _other(folder: Path, kind: str, task: Any, spec: dict[str, Any]) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build("resunet", {"channels": [8, 16, 16]})
        network = task.network(backbone, spec)
    card = {
        "kind": kind,
        "backbone": {"name": "resunet", "config": to_dict(backbone.config)},
        "preprocessing": {"modality": "CT"},
        "learnt_spacing_mm": LEARNT,
        "task_config": to_dict(task.config),
        "task_spec": spec,
    }
    return save_model(folder, network.state_dict(), card, "model")
