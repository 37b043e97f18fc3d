"""The tab Data: open scans, see whether they are sound, build a store."""

from __future__ import annotations
