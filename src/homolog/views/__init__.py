"""What a method sees: view specifications, views, and how they are made."""

from __future__ import annotations
