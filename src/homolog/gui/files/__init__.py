"""Scans in and out of napari: reader, writer, layers and their true geometry."""

from __future__ import annotations
