"""One sentence to the user from code that has no panel: readers and writers."""

from __future__ import annotations

import contextlib
import sys

from homolog.words import visible

_told: set[str] = set()


def notify(text: str, level: str = "warning") -> None:
    """Show a sentence: through the window's hub where there is one, else by napari.

    Args:
        text: What, why, what to do.
        level: ``info``, ``warning`` or ``error``.
    """
    text = visible(text)  # napari may print it on the terminal
    hub_module = sys.modules.get("homolog.gui.shared.hub")
    hub = hub_module.any_hub() if hub_module is not None else None
    if hub is not None:
        with contextlib.suppress(RuntimeError):  # its window is gone
            hub.say(text, level)
            return
    from napari.utils import notifications

    {
        "info": notifications.show_info,
        "warning": notifications.show_warning,
        "error": notifications.show_error,
    }[level](text)


def tell_once(text: str, level: str = "info") -> None:
    """As tell, once in the life of this process."""
    if text not in _told:
        _told.add(text)
        notify(text, level)


def forget() -> None:
    """Tell everything anew; for tests."""
    _told.clear()
