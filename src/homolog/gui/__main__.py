"""``python -m homolog.gui [PATH...]``: napari with our panel, for `homolog gui`."""

from __future__ import annotations

import sys
from pathlib import Path

import napari

from homolog.gui.window import open_viewer

if __name__ == "__main__":
    open_viewer([Path(p) for p in sys.argv[1:]])
    napari.run()
