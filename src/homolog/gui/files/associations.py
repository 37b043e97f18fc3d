"""Making Homolog napari's reader of medical files, with the user's consent.

napari's own reader claims the same endings and cannot read most of them; which reader
opens what is napari's setting ``extension2reader``. Free of Qt.
"""

from __future__ import annotations

from typing import Any

from homolog.gui import preferences
from homolog.gui.preferences import PLUGIN

# As in napari.yaml, without what other readers may rightly claim (.img of disks).
PATTERNS = (
    "*.nii", "*.nii.gz", "*.nrrd", "*.nhdr", "*.mha", "*.mhd", "*.hdr", "*.dcm",
    "*.dicom", "*.ima",
)  # fmt: skip
# How napari writes "any folder". Folders without DICOM go back to napari's own reader.
FOLDERS = "*/"


def should_offer() -> bool:
    """Whether to ask: the user did not decline, and some ending is not ours yet."""
    wanted = bool(preferences.get("viewing", "offer_association", True))
    return wanted and bool(not_ours())


def not_ours() -> list[str]:
    """Endings that napari opens with another reader, or would ask about."""
    table = _settings().extension2reader
    return [p for p in (*PATTERNS, FOLDERS) if table.get(p) != PLUGIN]


def folders_are_ours() -> bool:
    """Whether napari asks us about every folder."""
    return bool(_settings().extension2reader.get(FOLDERS) == PLUGIN)


def associate() -> None:
    """Open our endings and DICOM folders with Homolog; other endings stay."""
    settings = _settings()
    settings.extension2reader = {
        **settings.extension2reader,
        **dict.fromkeys((*PATTERNS, FOLDERS), PLUGIN),
    }


def decline() -> None:
    """Do not ask again; napari's preferences can bring the question back."""
    preferences.put("viewing", "offer_association", False)


def _settings() -> Any:
    from napari.settings import get_settings

    return get_settings().plugins
