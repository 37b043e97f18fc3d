"""Metrics: thin over MONAI and scikit-learn."""

from __future__ import annotations
