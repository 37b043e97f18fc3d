"""Landmarks: places of one scan found in another, looked at side by side."""

from __future__ import annotations
