"""Self-supervised pretraining for medical images, in napari and in the terminal.

Importing this package loads neither torch nor MONAI nor Qt; the rooms that need
them are imported when they are used.
"""

from __future__ import annotations

__version__ = "0.1.0"
