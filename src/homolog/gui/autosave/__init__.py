"""What the user made by hand is saved every few minutes, and offered after a crash."""

from __future__ import annotations
