"""The npe2 reader: medical image files as napari layers with true millimetres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from homolog.gui.layers import LayerData, label_layer, volume_layer

Paths: TypeAlias = str | Sequence[str]
Reader: TypeAlias = Callable[[Paths], list[LayerData]]


def get_reader(path: Paths) -> Reader | None:
    """Whether we read this, asked by napari; None when any path is no scan."""
    from homolog.data.scan_io import is_scan_path

    if all(is_scan_path(Path(p)) for p in _listed(path)):
        return read_layers
    return None


def read_layers(path: Paths) -> list[LayerData]:
    """One layer per file, placed in patient space (mm, LPS, axes z, y, x).

    Raises:
        UnusableInput: The file is no sound scalar scan; the sentence says why.
    """
    return [_layer(Path(p)) for p in _listed(path)]


def _layer(path: Path) -> LayerData:
    from homolog.data.label_words import is_label_folder, label_rank
    from homolog.data.scan_header import scan_stem
    from homolog.data.scan_io import read_labels, read_scan

    named = label_rank(scan_stem(path)) is not None
    if named or is_label_folder(path.parent.name):
        return label_layer(read_labels(path))
    return volume_layer(read_scan(path))


def _listed(path: Paths) -> list[str]:
    return [path] if isinstance(path, str) else list(path)
