"""Errors a user can act on. Each is one sentence: expected, came, which file."""

from __future__ import annotations


class UnusableInput(ValueError):
    """A scan, folder, manifest or weight file that cannot be used; exit status 2."""


class JobError(RuntimeError):
    """A job could not go on; what was saved before stays; exit status 1."""
