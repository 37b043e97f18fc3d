"""The tab Runs: the table of runs and the training screen."""

from __future__ import annotations
