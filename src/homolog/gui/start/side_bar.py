"""The bar of tabs at the side: an icon and a short name each, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import QByteArray, QEvent, QRectF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QFontMetrics, QIcon, QPainter, QPixmap
from qtpy.QtSvg import QSvgRenderer
from qtpy.QtWidgets import (
    QButtonGroup,
    QFrame,
    QLabel,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

# What each tab looks like: lines on a field of 24 x 24, drawn in the text's colour.
_DRAWN = {
    "Start": "M4 11 L12 4 L20 11 V20 H14 V14 H10 V20 H4 Z",
    "Data": "M3 6 H10 L12 8.5 H21 V19 H3 Z M3 11.5 H21",
    "Explore": "M10.5 4 a6.5 6.5 0 1 0 0.01 0 Z M15.3 15.3 L21 21 "
    "M8 10.5 H13 M10.5 8 V13",
    "Landmarks": "M12 21 C12 21 19 14.5 19 9.5 A7 7 0 1 0 5 9.5 C5 14.5 12 21 12 21 Z "
    "M12 7 a2.6 2.6 0 1 0 0.01 0 Z",
    "Label": "M14.5 4 L20 9.5 L9.5 20 H4 V14.5 Z M11.8 6.7 L17.3 12.2",
    "Segment": "M12 3.5 a8.5 8.5 0 1 0 0.01 0 Z M8 13 C8 9 12 7 15 9 "
    "C18 11 17 16 13 16.5 C10 17 8 15.5 8 13 Z",
    "Pretrain": "M12 3.5 L21 8.5 L12 13.5 L3 8.5 Z M3 12.5 L12 17.5 L21 12.5 "
    "M3 16.5 L12 21.5 L21 16.5",
    "Fine-tune": "M4 7 H7 M12 7 H20 M9.5 4.6 a2.4 2.4 0 1 0 0.01 0 Z "
    "M4 17 H12 M17 17 H20 M14.5 14.6 a2.4 2.4 0 1 0 0.01 0 Z",
    "Runs": "M4 4 V20 H20 M7 16 L11 10.5 L14 13 L20 6",
    "Models": "M12 3 L20 7.5 V16.5 L12 21 L4 16.5 V7.5 Z M4 7.5 L12 12 L20 7.5 "
    "M12 12 V21",
    "Help": "M12 3.5 a8.5 8.5 0 1 0 0.01 0 Z M9.3 9.5 A2.8 2.8 0 1 1 13.3 12 "
    "C12.3 12.6 12 13 12 14.2 M12 16.6 V17.4",
}
_PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="{path}" '
    'fill="none" stroke="{colour}" stroke-width="1.7" stroke-linecap="round" '
    'stroke-linejoin="round"/></svg>'
)
# Greys that stand out on light and on dark themes; the blue is napari's own.
_LOOK = """
QToolButton { border: none; border-left: 3px solid transparent; border-radius: 0px;
  padding: 2px 3px 2px 0px; margin: 0px; background: transparent; }
QToolButton:hover { background: rgba(128, 128, 128, 60); }
QToolButton:checked { background: rgba(128, 128, 128, 80);
  border-left: 3px solid rgb(0, 122, 204); }
QToolButton:focus { border: 2px solid rgb(0, 122, 204); }
"""
_ICON_PX, _SMALLER, _SIDES_PX = 22, 0.78, 12
_POINTS = 10.0  # of a label in napari's usual size
_CONTENT_PX = 315  # tabs beside the bar want this, at that size


class SideBar(QWidget):
    """All tabs, one below the other; names go where there is no room for them.

    Signals:
        picked: Title of the tab the user chose.

    Attributes:
        buttons: Title -> button.
        chosen: Title of the tab in front.

    Args:
        groups: (title, tooltip) of each tab, in groups that a line parts; the last
            group stands at the foot.
    """

    picked = Signal(str)

    def __init__(self, groups: Sequence[Sequence[tuple[str, str]]]) -> None:
        super().__init__()
        self.chosen = ""
        self.buttons: dict[str, QToolButton] = {}
        self._named: bool | None = None
        self._ink = ""
        self._sample = QLabel(self)  # has the letters of all labels of the panel
        self._sample.hide()
        self._group = QButtonGroup(self)
        self._group.setExclusive(True)
        self.setAccessibleName("Tabs")
        self.setStyleSheet(_LOOK)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Preferred)
        self._later = QTimer(self)  # a style sheet gives font and colour afterwards
        self._later.setSingleShot(True)
        self._later.timeout.connect(self._dress)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 2, 0)
        column.setSpacing(1)
        for place, group in enumerate(groups):
            if place == len(groups) - 1:
                column.addStretch(1)
            elif place:
                column.addWidget(_line())
            for title, tip in group:
                column.addWidget(self._make(title, tip))
        self.fit(0, 0)

    def choose(self, title: str) -> None:
        """Mark a tab as the one in front."""
        self.chosen = title
        self.buttons[title].setChecked(True)

    @property
    def scale(self) -> float:
        """How large the letters of the panel are, by napari's own of 10 points."""
        self._sample.ensurePolished()
        points = self._sample.font().pointSizeF()
        return points / _POINTS if points > 0 else 1.0

    def fit(self, width: int, height: int) -> None:
        """Show names beside icons where the panel has room for both.

        Args:
            width: Of the whole panel, pixels.
            height: Of the bar, pixels.
        """
        self._dress()
        font = next(iter(self.buttons.values())).font()
        metrics = QFontMetrics(font)
        high = metrics.height() + _ICON_PX + 8
        wide = max(map(metrics.horizontalAdvance, self.buttons)) + _SIDES_PX
        room = width - wide >= _CONTENT_PX * self.scale
        named = room and height >= high * len(self.buttons) + 16
        if named == self._named:
            return
        self._named = named
        style = Qt.ToolButtonStyle
        shape = style.ToolButtonTextUnderIcon if named else style.ToolButtonIconOnly
        for button in self.buttons.values():
            button.setToolButtonStyle(shape)
        self._dress()

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        kinds = (
            QEvent.Type.FontChange, QEvent.Type.StyleChange, QEvent.Type.PaletteChange
        )  # fmt: skip
        if event.type() in kinds and getattr(self, "_later", None) is not None:
            self._later.start(0)

    def showEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        self._dress()

    def _make(self, title: str, tip: str) -> QToolButton:
        button = QToolButton()
        button.setText(title)
        button.setCheckable(True)
        button.setAccessibleName(f"Tab {title}")
        button.setToolTip(f"{title}: {tip}")
        button.setIconSize(QSize(_ICON_PX, _ICON_PX))
        button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        button.clicked.connect(lambda _=False, t=title: self.picked.emit(t))
        self._group.addButton(button)
        self.buttons[title] = button
        return button

    def _dress(self) -> None:
        """Draw the icons in the colour of the theme's text, names a little smaller."""
        self._sample.ensurePolished()
        font = self._sample.font()
        if font.pointSizeF() > 0:
            font.setPointSizeF(font.pointSizeF() * _SMALLER)
        else:
            font.setPixelSize(max(1, round(font.pixelSize() * _SMALLER)))
        some = next(iter(self.buttons.values()))
        ink = some.palette().color(some.foregroundRole()).name()
        wide = max(map(QFontMetrics(font).horizontalAdvance, self.buttons))
        for title, button in self.buttons.items():
            button.setFont(font)
            button.setFixedWidth((wide if self._named else _ICON_PX) + _SIDES_PX)
            if ink != self._ink:
                button.setIcon(icon(title, ink))
        self._ink = ink


def icon(title: str, colour: str) -> QIcon:
    """The picture of a tab, sharp on screens of twice the pixels too.

    Args:
        title: Of the tab.
        colour: ``#rrggbb`` of its lines.
    """
    path = _DRAWN.get(title, "M4 4 H20 V20 H4 Z")
    svg = _PICTURE.format(path=path, colour=colour)
    renderer = QSvgRenderer(QByteArray(svg.encode()))
    found = QIcon()
    for side in (_ICON_PX, 2 * _ICON_PX):
        picture = QPixmap(side, side)
        picture.fill(Qt.GlobalColor.transparent)
        painter = QPainter(picture)
        renderer.render(painter, QRectF(0, 0, side, side))
        painter.end()
        found.addPixmap(picture)
    return found


def _line() -> QFrame:
    line = QFrame()
    line.setFixedHeight(1)
    line.setStyleSheet("background: rgba(128, 128, 128, 90);")
    return line
