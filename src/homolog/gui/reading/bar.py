"""A slim row that is the same on every tab: windows, planes, measures, surfaces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QMenu, QSizePolicy, QToolButton, QWidget
from superqt import QFlowLayout

from homolog.gui.reading.measures import TOOLS, Measures
from homolog.gui.reading.orientation import NAMES
from homolog.gui.reading.planes import ThreePlanes
from homolog.gui.reading.room import reading_of
from homolog.gui.reading.surfaces import Surfaces
from homolog.gui.reading.windows import CT_WINDOWS, HU, Window, windows_for
from homolog.gui.shared import keys
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import end_with
from homolog.gui.shared.widgets import ToolOneOf, named

_SETTLE_MS = 60
# The greys of the tabs; room on the right for the arrow of a menu.
_LOOK = """
QToolButton { border: 1px solid rgba(128, 128, 128, 110); border-radius: 3px;
  padding: 2px 16px 2px 5px; background: rgba(128, 128, 128, 25); }
QToolButton[plain="true"] { padding: 2px 5px; }
QToolButton:checked { background: rgba(128, 128, 128, 95); }
QToolButton:focus, QToolButton:hover { border: 1px solid rgb(0, 122, 204); }
QToolButton::menu-indicator { subcontrol-position: right center;
  subcontrol-origin: padding; right: 4px; }
"""


class ReadingBar(QWidget):
    """How the open scans are looked at, whatever tab is in front.

    Args:
        hub: Of the window.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.room = reading_of(hub)
        named(self, "Reading", "How the open scans are looked at")
        self.windows = WindowButton(self)
        self.views = ViewButton(self)
        self.setStyleSheet(_LOOK)
        row = QFlowLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2)
        self.measures = Measures(hub, self)
        self.surfaces = Surfaces(hub, self)
        self.measure = MeasureButton(self)
        self.surface = _plain("Surface", self.surfaces.show, (
            "Show the labels as surfaces in 3D, with their names and colours"
        ))  # fmt: skip
        self.hide_ours = _plain("Hide ours", self.toggle_ours, (
            "Hide all layers that this plugin made, or show them again (Shift+U)"
        ), "Show ours")  # fmt: skip
        for button in (
            self.windows, self.views, self.measure, self.surface, self.hide_ours,
        ):  # fmt: skip
            row.addWidget(button)
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(_SETTLE_MS)
        self._later.timeout.connect(self.refresh)
        self.planes = ThreePlanes(hub.viewer, self)
        self.planes.changed.connect(self.refresh)
        if hub.viewer is None:
            return
        self.room.begin()
        self._add_keys()
        self._follow()
        self.hub.closing.connect(self.planes.hide)
        end_with(self, self.end)

    def end(self) -> None:
        """Let go of the viewer."""
        self.planes.hide()
        self.measures.end()
        self.surfaces.end()
        self.room.end()

    def toggle_planes(self) -> None:
        """Show the three planes, or napari's canvas alone."""
        if self.planes.is_shown:
            self.planes.hide()
        else:
            self.planes.show()
            self.planes.letters(self.room.orientation.shown)

    def toggle_ours(self) -> None:
        """Hide what the plugin made, or show it again."""
        ours = self.room.ours
        if not ours.toggle():
            self.say("Nothing that this plugin made is shown.")
        self.hide_ours.setText("Show ours" if ours.are_hidden else "Hide ours")

    def front(self, tab: str) -> None:
        """Another tab is in front: its layers come, those of the one left go."""
        if self.hub.viewer is not None:
            self.room.ours.front(tab)

    def refresh(self) -> None:
        """Show which window and which plane are shown."""
        self.windows.refresh()
        self.views.refresh()

    def say(self, text: str) -> None:
        """A short sentence."""
        self.hub.say(text)

    def soon(self, event: Any = None) -> None:
        """Once, however many layers come at a time."""
        if not self._later.isActive():
            self._later.start()

    def _add_keys(self) -> None:
        for place in range(len(CT_WINDOWS)):
            keys.add(
                self.hub, f"Alt-{place + 1}", f"window {place + 1} of the list",
                partial(self.windows.number, place),
            )  # fmt: skip

        keys.add(
            self.hub, "Shift-O", "axial, coronal and sagittal at once, or one of them",
            self.toggle_planes,
        )  # fmt: skip

        keys.add(
            self.hub, "Shift-J", "measure a distance",
            partial(self.measures.begin, "Distance"),
        )  # fmt: skip
        keys.add(
            self.hub, "Shift-U", "hide or show the layers that this plugin made",
            self.toggle_ours,
        )  # fmt: skip

    def _follow(self) -> None:
        viewer = self.hub.viewer
        for emitter in (
            viewer.layers.events.inserted, viewer.layers.events.removed,
            viewer.layers.selection.events.active, viewer.dims.events.order,
            viewer.dims.events.ndisplay,
        ):  # fmt: skip
            emitter.connect(self.soon)


def small_button(button: QToolButton, name: str, hint: str) -> None:
    """What all buttons of the row have in common."""
    named(button, name, hint)
    button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
    button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
    button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    button.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)


def _plain(text: str, act: Callable[[], Any], hint: str, *other: str) -> ToolOneOf:
    """A button without a menu."""
    button = ToolOneOf(text, *other)
    small_button(button, text, hint)
    button.setProperty("plain", "true")
    button.clicked.connect(lambda: act())
    return button


def entry(
    menu: QMenu, text: str, act: Callable[[], Any], key: str = "", hint: str = ""
) -> Any:
    """A line of a menu: words on the left, its key on the right."""
    action = menu.addAction(text)
    if key:
        action.setShortcut(QKeySequence(key.replace("-", "+")))
        # napari's own binding does the work; here it is only told.
        action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        action.setShortcutVisibleInContextMenu(True)
    action.setToolTip(hint or text)
    action.triggered.connect(lambda _=False: act())
    return action


class WindowButton(ToolOneOf):
    """The window presets of what is looked at.

    Args:
        bar: It belongs to.
    """

    def __init__(self, bar: ReadingBar) -> None:
        names = [w.name for w in (*CT_WINDOWS, *windows_for(""))]
        super().__init__("Window", *names)
        self._bar = bar
        small_button(
            self, "Window",
            "Which values are black and which white, for all scans of a kind",
        )  # fmt: skip
        self._menu = QMenu(self)
        self._menu.setToolTipsVisible(True)
        self._menu.aboutToShow.connect(self._fill)
        self.setMenu(self._menu)

    def number(self, place: int) -> None:
        """The preset with this place, chosen by its key."""
        windows = self._bar.room.windows
        window = windows.number(place)
        if window is None and not windows.kind:
            self._bar.say("Open a scan first; then Alt and a digit choose its window.")
        self.refresh()

    def refresh(self) -> None:
        """Show the name of the window."""
        if self._bar.hub.viewer is None:
            return
        window = self._bar.room.windows.current()
        self.setText("Window" if window is None else window.name)
        told = "" if window is None else f" Now: {window.name}, {window.numbers}."
        self.setToolTip(
            "Which values are black and which white, for all scans of a kind." + told
        )

    def _fill(self) -> None:
        self._menu.clear()
        windows = self._bar.room.windows
        kind = windows.kind
        if not kind:
            self._menu.addAction("Open a scan first").setEnabled(False)
            return
        title = "CT, in HU" if kind == HU else f"{kind}, by percentiles of all values"
        self._menu.addSection(title.replace("OTHER", "Scans without a unit"))
        now = windows.current()
        for place, window in enumerate(windows_for(kind)):
            text = window.name
            if window.in_hu:
                text += f"   {window.numbers}"
            action = entry(
                self._menu, text, partial(self._show, window), f"Alt-{place + 1}"
            )
            action.setCheckable(True)
            action.setChecked(window == now)

    def _show(self, window: Window) -> None:
        self._bar.room.windows.show(window)
        self.refresh()


class ViewButton(ToolOneOf):
    """Planes, 3D, and letters.

    Args:
        bar: It belongs to.
    """

    def __init__(self, bar: ReadingBar) -> None:
        super().__init__("View", *NAMES.values())
        self._bar = bar
        small_button(self, "View", "Axial, coronal, sagittal slices, 3D, letters")
        self._menu = QMenu(self)
        self._menu.setToolTipsVisible(True)
        self._menu.aboutToShow.connect(self._fill)
        self.setMenu(self._menu)

    def refresh(self) -> None:
        """Show the name of the plane."""
        viewer = self._bar.hub.viewer
        if viewer is None:
            return
        plane = self._bar.room.orientation.plane
        self.setText("3D" if plane is None else NAMES[plane])

    def _fill(self) -> None:
        self._menu.clear()
        orientation = self._bar.room.orientation
        for plane, name in NAMES.items():
            action = entry(
                self._menu, name, partial(self._look, plane),
                hint=f"{name} slices; Ctrl+E goes from plane to plane",
            )  # fmt: skip
            action.setCheckable(True)
            action.setChecked(orientation.plane == plane)
        entry(
            self._menu, "Slices as taken", self._as_taken,
            hint="The plane across the longest side of the voxels, tilted or not",
        )  # fmt: skip
        three = entry(
            self._menu, "Three planes", self._bar.toggle_planes, "Shift-O",
            hint="All three at once; a click in one moves the others",
        )  # fmt: skip
        three.setCheckable(True)
        three.setChecked(self._bar.planes.is_shown)
        space = entry(self._menu, "3D", self._space, "Ctrl-Y")
        space.setCheckable(True)
        space.setChecked(self._bar.hub.viewer.dims.ndisplay == 3)
        self._menu.addSeparator()
        shown = entry(
            self._menu, "Letters L R A P S I", self._letters,
            hint="Left, right, anterior, posterior, superior, inferior at the edges",
        )  # fmt: skip
        shown.setCheckable(True)
        shown.setChecked(orientation.shown)

    def _look(self, plane: int) -> None:
        self._bar.room.orientation.look(plane)
        self.refresh()

    def _as_taken(self) -> None:
        self._bar.room.orientation.look_along_slices()
        self.refresh()

    def _space(self) -> None:
        self._bar.hub.viewer.dims.ndisplay = 3

    def _letters(self) -> None:
        shown = not self._bar.room.orientation.shown
        self._bar.room.show_letters(shown)
        self._bar.planes.letters(shown)


class MeasureButton(QToolButton):
    """Distances, angles, regions, and the values under labels.

    Args:
        bar: It belongs to.
    """

    def __init__(self, bar: ReadingBar) -> None:
        super().__init__()
        self._bar = bar
        self.setText("Measure")
        small_button(
            self, "Measure", "Distances and angles in mm, values of a region or a label"
        )
        self._menu = QMenu(self)
        self._menu.setToolTipsVisible(True)
        self._menu.aboutToShow.connect(self._fill)
        self.setMenu(self._menu)

    def _fill(self) -> None:
        self._menu.clear()
        measures = self._bar.measures
        for tool, (_, hint) in TOOLS.items():
            key = "Shift-J" if tool == "Distance" else ""
            entry(self._menu, tool, partial(measures.begin, tool), key, hint)
        self._menu.addSeparator()
        entry(
            self._menu, "Values under each label...", measures.label_values,
            hint="Mean, SD, smallest, largest and volume of each label, as a table",
        )  # fmt: skip
        away = entry(
            self._menu, "Take all measures away", measures.forget,
            hint="Remove all lines, angles and regions that were drawn",
        )  # fmt: skip
        away.setEnabled(measures.some)
