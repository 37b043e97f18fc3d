"""Where things lie: affines (numpy), sampling and correspondence (torch)."""

from __future__ import annotations
