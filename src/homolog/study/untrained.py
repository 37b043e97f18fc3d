"""The control of every claim about features: the same network with random weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from homolog.backbones._base import build
from homolog.model_files import LoadedEncoder, encoder_id


def untrained(loaded: LoadedEncoder, seed: int = 0) -> LoadedEncoder:
    """The encoder as it was before any training, its card unchanged.

    Heads are left out: random ones would blur what the network itself sees.

    Args:
        loaded: Gives architecture, window, maps and preprocessing.
        seed: Of the weights.
    """
    chosen = loaded.card["backbone"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build(chosen["name"], chosen["config"]).eval()
    embedding = {**(loaded.card.get("embedding") or {}), "heads": False}
    card = {**loaded.card, "embedding": embedding}
    return replace(
        loaded, backbone=backbone, card=card, encoder_id=encoder_id(backbone)
    )
