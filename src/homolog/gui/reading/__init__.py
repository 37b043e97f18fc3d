"""Reading scans: windows, orientation, three planes, measures, surfaces."""

from __future__ import annotations
