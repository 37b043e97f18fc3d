"""``homolog gui``: napari with our reader."""

from __future__ import annotations

from pathlib import Path

import click

from homolog.cli._options import common
from homolog.errors import JobError


@click.command(name="gui")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@common
def command(paths: tuple[Path, ...], as_json: bool, device: str, seed: int) -> None:
    """Open napari, with scans if any are named."""
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise FileNotFoundError(2, "No such file or folder", str(missing[0]))
    try:
        import napari
    except ImportError:
        raise JobError(
            "napari is not installed; install it with: "
            'python -m pip install "napari-homolog[gui]"'
        ) from None
    from homolog.gui.window import open_viewer

    open_viewer(paths)
    napari.run()
