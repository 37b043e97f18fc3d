"""What the user chose once: napari's settings page, read and written in one place.

The page is made by napari from ``configurations`` in napari.yaml; a test checks that
every name used here stands there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from homolog.model_files.library import named_library

PLUGIN = "napari-homolog"
_DEFAULT_HOME = "~/homolog"


def get(category: str, name: str, default: Any) -> Any:
    """A setting of our page in napari's preferences.

    Args:
        category: ``folders``, ``compute``, ``viewing`` or ``session``.
        name: The property in napari.yaml.
        default: What holds where napari has no such page (an older napari, a script).
    """
    with contextlib.suppress(Exception):
        value = getattr(getattr(_page(), category), name)
        return default if value is None else value
    return default


def put(category: str, name: str, value: Any) -> None:
    """Change a setting; silently nothing where napari has no such page."""
    with contextlib.suppress(Exception):
        setattr(getattr(_page(), category), name, value)


def home() -> Path:
    """The folder of stores, runs, models and features."""
    text = str(get("folders", "home", "")).strip() or _DEFAULT_HOME
    return Path(text).expanduser()


def models() -> Path:
    """The library of models: in the home folder unless HOMOLOG_MODELS names another."""
    return named_library() or home() / "models"


def _page() -> Any:
    from napari.settings import get_plugin_settings

    return get_plugin_settings(PLUGIN)
