"""The way in: the bar of tabs, the first screen with three doors, and the help."""

from __future__ import annotations
