"""The Label tab: paint a few voxels, see the whole scan labelled a second later."""

from __future__ import annotations
