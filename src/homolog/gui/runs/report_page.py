"""The page that makes a report on a run's model: which store it is looked at on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QVBoxLayout

from homolog.errors import UnusableInput
from homolog.events import Event, Note, Progress
from homolog.gui.runs.training_screen import headline_label, text_label
from homolog.gui.shared import preferences, widgets
from homolog.gui.shared.choices import labelled_words
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import StoreList
from homolog.gui.shared.threads import in_background
from homolog.runs.run import Run
from homolog.writing import free_name

# What a report is asked for and how it is told; no Qt.

# Told by whole scans, not window by window.
_INNER = "embedding"


def report_of(
    store: Path, models: Sequence[Path], features: Path, out: Path
) -> dict[str, Any]:
    """What the worker gets for a whole report on models, the first against the rest."""
    first, *others = (str(path.absolute()) for path in models)
    return {
        "store": str(store.absolute()),
        "encoder": first,
        "against": others,
        "features": str(features.absolute()),
        "out": str(out.absolute()),
    }


def doing(event: Event) -> tuple[str, float] | None:
    """What is being done, and the share of it; None where nothing new is told."""
    if not isinstance(event, Progress) or event.phase == _INNER:
        return None
    text = f"{event.phase}: {min(event.index + 1, event.total)} of {event.total}"
    return text, event.index / max(event.total, 1)


def warning(event: Event) -> str:
    """A sentence that must not be lost; empty for other news."""
    if isinstance(event, Note) and event.level == "warning":
        return event.text
    return ""


def stores_of(folder: Path) -> list[str]:
    """The stores a run learnt from; none where it does not say."""
    try:
        config: Mapping[str, Any] = Run.open(folder).spec["config"]
    except UnusableInput:
        return []
    found = [config.get("store"), *(config.get("stores") or ())]
    return [str(Path(str(path)).absolute()) for path in found if path]


_LEAD = (
    "Pictures and figures of what the model learnt: organs by t-SNE and PCA, "
    "similarities within and between patients, a probe, robustness, and the course of "
    "the training, all against the same network with random weights. It takes some "
    "minutes, then the page opens in the browser."
)


class ReportPage(widgets.HelperBox):
    """Asks for a store, makes the report in a worker, and opens it.

    Signals:
        back: To the list of runs.
    """

    back = Signal()

    def __init__(self, hub: Hub) -> None:
        super().__init__("the report", "End it; feature maps made so far are kept", 3)
        self.hub = hub
        self.folder: Path | None = None
        self.page: Path | None = None
        self._warnings: list[str] = []
        self._build()
        self.enable()

    def show_run(self, folder: Path) -> None:
        """Ask about the model of a run; a report being made goes on."""
        if self.busy:
            return
        self.folder, self.page = folder, None
        self.headline.setText(f"Full report on {folder.name}")
        widgets.tell(self.words, "")
        self.enable()
        in_background(
            stores_of, folder, owner=self, done=self._list_for,
            failed=lambda error: self._say(f"⚠ {error}"),
        )  # fmt: skip

    def begin(self) -> None:
        """Make the report, in a worker."""
        store = self.store.store
        if self.folder is None or store is None or self.busy:
            return
        if self.hub.engine_missing():
            self._say("⚠ This needs the training engine; see the note at the top.")
            return
        home = preferences.home() / "reports"
        name = free_name(self.folder.name, lambda n: (home / n).exists())
        self._warnings.clear()
        self.page = None
        config = report_of(store, [self.folder], self.hub.features, home / name)
        self.launch("report", config, self._reported)

    def enable(self) -> None:
        """What can be done now."""
        here = self.store.store is not None
        self.start.setEnabled(here and self.folder is not None and not self.busy)
        self.store.setEnabled(not self.busy)
        self.open.setEnabled(self.page is not None)

    def halt(self) -> None:
        """It was stopped."""
        self.end("Stopped; the feature maps made so far are kept.")

    def take(self, event: Event) -> None:
        """What is being done; the bar shows shares."""
        if told := doing(event):
            text, share = told
            self._say(text)
            self.bar.setRange(0, 100)
            self.bar.setValue(round(100 * share))
        if text := warning(event):
            self._warnings.append(text)

    def open_page(self) -> None:
        """Show the page in the browser."""
        if self.page is not None and not QDesktopServices.openUrl(
            QUrl.fromLocalFile(str(self.page))
        ):
            self.hub.say(f"No browser was found; the page is {self.page}", "warning")

    def _reported(self, result: dict[str, Any]) -> None:
        self.page = Path(str(result["html"]))
        notes = "".join(f"\n⚠ {text}" for text in dict.fromkeys(self._warnings))
        self.end(f"✓ The report is {self.page}{notes}")
        self.open_page()

    def _list_for(self, stores: list[str]) -> None:
        paths = [Path(text) for text in stores]
        self.store.add(path for path in paths if path.is_dir())
        if paths:
            self.store.want(paths[0])
        self.store.read()

    def _say(self, text: str) -> None:
        widgets.tell(self.words, text)

    def _build(self) -> None:
        self.headline = headline_label("Run that is reported on")
        lead = text_label("What a report is")
        lead.setText(_LEAD)
        self.store = StoreList(self.hub, labelled_words)
        self.store.chosen.connect(lambda _: self.enable())
        self.store.listed.connect(self.enable)
        self.store.told.connect(lambda text: self._say(f"⚠ {text}"))
        self.start = widgets.button(
            "Make the report", "In a worker process; some minutes", self.begin
        )
        self.open = widgets.button(
            "Open the page", "Show the report in the browser", self.open_page
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        back = widgets.button(
            "◀ All runs", "Back to the list; a report being made goes on",
            self.back.emit,
        )  # fmt: skip
        for widget in (back, self.headline, lead):
            column.addWidget(widget)
        column.addLayout(
            widgets.labelled(
                "Store with labels", self.store, "Whose labelled scans are looked at"
            )
        )
        column.addLayout(widgets.beside(self.start, self.open))
        column.addLayout(self.working())
        column.addWidget(self.words)
        column.addStretch()
