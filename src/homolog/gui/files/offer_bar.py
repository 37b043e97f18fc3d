"""The bar that offers to make Homolog napari's reader of medical files; no dialog."""

from __future__ import annotations

from qtpy.QtWidgets import QFrame, QLabel, QVBoxLayout

from homolog.gui.files import reader
from homolog.gui.shared import widgets


class OfferBar(QFrame):
    """Two buttons and a sentence, shown until the user has answered."""

    def __init__(self) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        words = QLabel(
            "While this panel is open, dropped scans open with Homolog. Always do so? "
            "napari's own reader loses their voxel size."
        )
        words.setWordWrap(True)
        widgets.named(
            self, "Offer to open medical files", "Sets napari's reader of these files"
        )
        self.use = widgets.button(
            "Use Homolog for medical files",
            "Dropped medical files open with Homolog from now on",
            self._associate,
        )
        self.not_now = widgets.button(
            "Not now",
            "Do not ask again; the menu File, IO utilities can",
            self._decline,
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 4, 6, 4)
        for widget in (words, self.use, self.not_now):
            column.addWidget(widget)
        self.refresh()

    def refresh(self) -> None:
        """Show the bar where there is something to offer; else it takes no room."""
        widgets.keep_room(self, keep=False)
        self.setVisible(reader.should_offer())

    def _associate(self) -> None:
        reader.associate()
        self._answered()

    def _decline(self) -> None:
        reader.decline()
        self._answered()

    def _answered(self) -> None:
        """Nothing may jump to where the pointer just pressed."""
        widgets.keep_room(self)
        self.hide()
