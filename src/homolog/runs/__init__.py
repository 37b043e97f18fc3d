"""Jobs in their own processes: run directory, worker, launch."""

from __future__ import annotations
