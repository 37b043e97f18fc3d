"""The tab Models: cards, import, export."""

from __future__ import annotations
