"""The box "What does it know?": models against a store's labels, in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import Qt, QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QSpinBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
)

from homolog.events import Event
from homolog.gui.models import probing
from homolog.gui.runs.report_page import doing, report_of, warning
from homolog.gui.runs.training_screen import text_label
from homolog.gui.shared import preferences, widgets
from homolog.gui.shared.choices import labelled_words
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import StoreList
from homolog.gui.shared.models import ModelCard
from homolog.writing import free_name

_ROWS_SHOWN = 7
_CELL = 2  # voxels a side of a decoder's features
_HINT = (
    "Frozen features are read by simple means on a few labelled patients and judged on "
    "others: minutes, before any fine-tuning. Models are ranked, with what each costs."
)


class ProbeBox(widgets.HelperBox):
    """Asks what models know of a store's labels, in a worker process.

    Signals:
        grew: It may need another height.
        all_wanted: All models are to be asked about.

    Args:
        hub: Of the window.
        asked: Gives the models that are asked about now.
    """

    grew = Signal()
    all_wanted = Signal()

    def __init__(self, hub: Hub, asked: Callable[[], list[ModelCard]]) -> None:
        super().__init__("the probe", "End it; feature maps made so far are kept", 2)
        self.hub, self._asked = hub, asked
        self.answer: probing.Answer | None = None
        self._warnings: list[str] = []
        self._build()
        hub.changed.connect(self._heard)
        self.refresh()

    def read_stores(self) -> None:
        """List the stores anew, in the background."""
        self.store.read()

    def refresh(self) -> None:
        """Other models were chosen or ticked."""
        self.enable()

    def enable(self) -> None:
        """What can be done now."""
        models = self._asked()
        self.about.setText(probing.about(models))
        self.grew.emit()
        here = self.store.store is not None
        for one in (self.start, self.report):
            one.setEnabled(bool(models) and here and not self.busy)
        self.decoders.setEnabled(any(map(probing.hands_on_decoder, models)))

    def begin(self) -> None:
        """Probe, in a worker."""
        if (found := self._ready("probes")) is None:
            return
        models, store, out = found
        config = probing.config_of(
            store, models, self.patients.value(), self.hub.features, out,
            _CELL if self.decoders.isEnabled() and self.decoders.isChecked() else 0,
        )  # fmt: skip
        self.launch("probe", config, self._done)

    def begin_report(self) -> None:
        """Make the whole report, in a worker."""
        if (found := self._ready("reports")) is None:
            return
        models, store, out = found
        config = report_of(store, [m.path for m in models], self.hub.features, out)
        self.launch("report", config, self._reported)

    def _ready(self, place: str) -> tuple[list[ModelCard], Path, Path] | None:
        """Models, store and a free folder; None where nothing can begin."""
        models, store = self._asked(), self.store.store
        if not models or store is None or self.busy:
            return None
        if self.hub.engine_missing():
            self._say("⚠ This needs the training engine; see the note at the top.")
            return None
        home = preferences.home() / place
        name = free_name(store.name, lambda n: (home / n).exists())
        self._warnings.clear()
        return models, store, home / name

    def halt(self) -> None:
        """It was stopped."""
        self.end("Stopped; the feature maps made so far are kept.")

    def show_answer(self, answer: probing.Answer) -> None:
        """Table, verdict and the way to the page."""
        self.answer = answer
        self.table.setColumnCount(len(answer.head))
        self.table.setHorizontalHeaderLabels([_broken(t) for t in answer.head])
        self.table.setRowCount(len(answer.rows))
        for line, row in enumerate(answer.rows):
            for column, text in enumerate(row):
                item = QTableWidgetItem(text)
                item.setToolTip(f"{row[0]}: {answer.head[column]} {text}")
                if column:
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                if line < answer.models:
                    font = item.font()
                    font.setBold(True)
                    item.setFont(font)
                self.table.setItem(line, column, item)
        self.table.resizeColumnsToContents()
        self._fit()
        self.verdict.setText(answer.text)
        self.page.setEnabled(answer.page is not None)
        for widget in (self.table, self.verdict, self.page):
            widget.setVisible(True)
        self.grew.emit()
        widgets.bring_into_view(self.verdict)  # minutes after it was asked for

    def open_page(self) -> None:
        """Show the probe's page in the browser."""
        page = self.answer.page if self.answer is not None else None
        if page is not None:
            self._open(page)

    def _open(self, page: Path) -> None:
        if not QDesktopServices.openUrl(QUrl.fromLocalFile(str(page))):
            self.hub.say(f"No browser was found; the page is {page}", "warning")

    # What the worker tells

    def take(self, event: Event) -> None:
        """What is done with which model; the bar shows shares."""
        if told := doing(event):
            text, share = told
            self._say(text)
            self.bar.setRange(0, 100)
            self.bar.setValue(round(100 * share))
        if text := warning(event):
            self._warnings.append(text)

    def _done(self, result: dict[str, object]) -> None:
        self.end("")
        self.show_answer(probing.answer_of(result, self._warnings))

    def _reported(self, result: dict[str, object]) -> None:
        page = Path(str(result["html"]))
        self.end(f"The report is {page}")
        self._open(page)

    def _heard(self, what: str) -> None:
        if what == "stores" and self.isVisible():
            self.read_stores()

    def _say(self, text: str) -> None:
        widgets.tell(self.words, text)

    # Parts

    def _build(self) -> None:
        self.about = widgets.Sentence(2)  # it changes above buttons
        widgets.named(self.about, "Models that are asked about", "What is asked about")
        hint = text_label("What this does")
        hint.setText(_HINT)
        self.store = StoreList(self.hub, labelled_words)
        self.store.chosen.connect(lambda _: self.refresh())
        self.store.listed.connect(self.refresh)
        self.store.told.connect(lambda text: self._say(f"⚠ {text}"))
        self.patients = QSpinBox()
        self.patients.setRange(0, 999)
        self.patients.setSpecialValueText("automatic")
        self._make_buttons()
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        self._make_answer()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(hint)
        column.addWidget(self.about)
        column.addWidget(self.every, 0, Qt.AlignmentFlag.AlignLeft)
        column.addLayout(
            widgets.labelled("Store with labels", self.store, "Whose labels are told")
        )
        column.addLayout(
            widgets.labelled(
                "Labelled patients to learn from", self.patients,
                "Drawn by chance, the same for all models; others are judged. "
                "Automatic: 3, or of classes of whole scans all of the training split",
            )
        )  # fmt: skip
        column.addWidget(self.decoders)
        column.addLayout(widgets.beside(self.start, self.report, self.cancel))
        for widget in (self.bar, self.words, self.verdict, self.table, self.page):
            column.addWidget(widget)

    def _make_buttons(self) -> None:
        self.decoders = widgets.named(
            QCheckBox("Their decoders too"), "Their decoders too",
            "Also probe what the decoder that was trained with an encoder makes, where "
            "there is one; takes longer",
        )  # fmt: skip
        self.start = widgets.button(
            "Find out", "Probe the features of these models for the labels of the "
            "store; a minute or two each", self.begin,
        )  # fmt: skip
        self.every = widgets.button(
            "All models", "Ask about every model of the list: which suits these "
            "scans best?", self.all_wanted.emit,
        )  # fmt: skip
        self.report = widgets.button(
            "Full report...", "Pictures and figures of what these models learnt: "
            "organs by t-SNE and PCA, similarities between patients, robustness, the "
            "training's course; some minutes each, then a page in the browser",
            self.begin_report,
        )  # fmt: skip

    def _make_answer(self) -> None:
        self.table = QTableWidget(0, 0)
        widgets.named(
            self.table, "What the models know",
            "Balanced accuracy on patients not learnt from, models best first",
        )  # fmt: skip
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        if (side := self.table.verticalHeader()) is not None:
            side.hide()
        self.verdict = text_label("Verdict of the probe")
        self.page = widgets.button(
            "Open the page...", "Every map and every label, with charts", self.open_page
        )
        for widget in (self.table, self.verdict, self.page):
            widget.hide()

    def _fit(self) -> None:
        extra = 2 * self.table.frameWidth() + 2
        for part in (self.table.horizontalHeader(), self.table.horizontalScrollBar()):
            extra += part.sizeHint().height() if part is not None else 0
        shown = min(self.table.rowCount(), _ROWS_SHOWN)
        self.table.setFixedHeight(extra + sum(map(self.table.rowHeight, range(shown))))


def _broken(title: str) -> str:
    """A title of two words in two lines."""
    return title.replace(" ", "\n", 1)
