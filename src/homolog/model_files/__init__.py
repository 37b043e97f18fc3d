"""All that passes from learning to use: model folders and encoders."""

from __future__ import annotations

from homolog.model_card import read_card
from homolog.model_files.encoder import (
    LoadedEncoder,
    encoder_id,
    load_embedder,
    load_encoder,
)
from homolog.model_files.folder import (
    LoadedModel,
    find_model,
    load_model,
    save_model,
)
from homolog.model_files.matching import LoadReport, fill

__all__ = [
    "LoadReport",
    "LoadedEncoder",
    "LoadedModel",
    "encoder_id",
    "fill",
    "find_model",
    "load_embedder",
    "load_encoder",
    "load_model",
    "read_card",
    "save_model",
]
