"""Pretraining as a job: stores and a method in, an encoder out."""

from __future__ import annotations

from homolog.pretrain.job import job
from homolog.pretrain.settings import PretrainConfig, resolve

__all__ = ["PretrainConfig", "job", "resolve"]
