"""Pictures of scans and features, with numpy and scipy alone."""

from __future__ import annotations
