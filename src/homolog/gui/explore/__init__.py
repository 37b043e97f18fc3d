"""The tab Explore: similarity under the mouse, pins, matches, colours."""

from __future__ import annotations
