"""The tabs Pretrain and Fine-tune: forms, estimate, start."""

from __future__ import annotations
