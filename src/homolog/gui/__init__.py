"""The napari face. This process never imports torch or MONAI."""

from __future__ import annotations
