"""Parts of networks shared by methods and tasks."""

from __future__ import annotations
