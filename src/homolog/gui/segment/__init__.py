"""The tab Segment: one scan or a batch, volumes, comparison."""

from __future__ import annotations
