"""A form made from the engine's description of settings: widgets only.

One row per setting: label with unit, editor, and a button that says whether the value
is the recipe's and takes it back. A text that cannot be meant gets a red frame, a
warning sign and the reason as tooltip. What a text means is decided in form_fields.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from magicgui.widgets import create_widget
from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QGridLayout,
    QLabel,
    QLineEdit,
    QSizePolicy,
    QStyle,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from homolog.gui.folds import fold_of
from homolog.gui.learn.form_fields import (
    Field,
    Refused,
    arrange,
    base_values,
    differing,
)
from homolog.gui.rows import ToolOneOf

_LABEL_LETTERS = 15
_RED = "QLineEdit { border: 2px solid #d9534f; }"


class FieldRow(QWidget):
    """One setting; not shown itself, its three widgets stand in the form's grid."""

    changed = Signal()

    def __init__(self, field: Field, base: Any, parent: QWidget) -> None:
        super().__init__(parent)
        self.hide()
        self.field, self.base = field, base
        self._editor = _editor(field)
        self.editor: QWidget = self._editor.native
        self.editor.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed
        )
        self.editor.setMinimumWidth(60)
        # Broken by hand: a fold gives rows of wrapping labels too small a height.
        self.label = QLabel("\n".join(textwrap.wrap(field.label, _LABEL_LETTERS)))
        self.label.setBuddy(self.editor)
        self.back = ToolOneOf("Reset", "default")
        self.back.clicked.connect(self.reset)
        self._quiet = False
        self._sign: Any = None
        self.reason = ""
        self.set_base(base)
        self._editor.changed.connect(self._changed)

    @property
    def value(self) -> Any:
        """What is meant now.

        Raises:
            Refused: Nothing that can be meant.
        """
        if self.field.choices is not None or self.field.kind == "bool":
            return self._editor.value
        return self.field.read(str(self._editor.value))

    def show_value(self, value: Any) -> None:
        """Put a value into the editor; ``changed`` stays silent."""
        self._quiet = True
        try:
            if self.field.choices is not None or self.field.kind == "bool":
                self._editor.value = value
            else:
                self._editor.value = self.field.text_of(value)
        finally:
            self._quiet = False
        self._look()

    def set_base(self, base: Any) -> None:
        """Another recipe's value; the editor takes it."""
        self.base = base
        self.show_value(base)

    def reset(self) -> None:
        """Back to the recipe's value."""
        self.show_value(self.base)
        self.changed.emit()

    def _changed(self) -> None:
        if self._quiet:
            return
        self._look()
        self.changed.emit()

    def _look(self) -> None:
        """Mark what is not the recipe's, and what cannot be meant."""
        try:
            value, self.reason = self.value, ""
        except Refused as refusal:
            value, self.reason = None, str(refusal)
        differs = bool(self.reason) or bool(differing({"": value}, {"": self.base}))
        hint = self.field.hint(self.base)
        told = f"{self.reason}\n{hint}" if self.reason else hint
        for widget in (self.editor, self.label):
            widget.setToolTip(told)
        self.editor.setAccessibleName(self.field.label)
        self.editor.setAccessibleDescription(told)
        self.back.setEnabled(differs)
        self.back.setText("Reset" if differs else "default")
        self.back.setAccessibleName(f"Reset {self.field.label}")
        base = self.field.text_of(self.base) or "empty"
        self.back.setToolTip(
            f"Back to the recipe's value: {base}"
            if differs
            else f"This is the recipe's value: {base}"
        )
        font = self.label.font()
        font.setBold(differs)
        self.label.setFont(font)
        self._show_sign()

    def _show_sign(self) -> None:
        if not isinstance(self.editor, QLineEdit):
            return
        if self.reason and self._sign is None:
            icon = self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning)
            place = QLineEdit.ActionPosition.TrailingPosition
            self._sign = self.editor.addAction(icon, place)
            self.editor.setStyleSheet(_RED)
        elif not self.reason and self._sign is not None:
            self.editor.removeAction(self._sign)
            self._sign = None
            self.editor.setStyleSheet("")
        if self._sign is not None:
            self._sign.setToolTip(self.reason)


class Form(QWidget):
    """Settings of one configuration.

    Signals:
        changed: The user changed something.
    """

    changed = Signal()

    def __init__(
        self,
        plain: Iterable[Mapping[str, Any]] = (),
        *,
        first: Sequence[str] = (),
        hidden: Sequence[str] = (),
        more: str = "More",
        advanced: str = "Advanced",
        parent: QWidget | None = None,
    ) -> None:
        """Make the form.

        Args:
            plain: FIELD dicts of the engine's description.
            first: Names of settings that are visible at once.
            hidden: Names that are asked for elsewhere.
            more: Title of the fold with the other settings.
            advanced: Title of the fold for settings few people touch.
            parent: Of the widget.
        """
        super().__init__(parent)
        self._first, self._hidden = tuple(first), tuple(hidden)
        self._titles = (more, advanced)
        self.rows: dict[str, FieldRow] = {}
        self._fields: tuple[Field, ...] = ()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self._body: QWidget | None = None
        self.set_fields(plain)

    def set_fields(
        self,
        plain: Iterable[Mapping[str, Any]],
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        """Show other settings, with a recipe's values."""
        self._fields = tuple(Field.of(p) for p in plain)
        base = base_values(self._fields, recipe)
        if self._body is not None:
            self.layout().removeWidget(self._body)
            self._body.hide()
            self._body.deleteLater()
        self.rows = {}
        self._body = QWidget()
        column = QVBoxLayout(self._body)
        column.setContentsMargins(0, 0, 0, 0)
        parts = arrange(self._fields, self._first, self._hidden)
        if parts.first:
            column.addWidget(self._grid(parts.first, base))
        more, advanced = self._titles
        if parts.more and more:
            inside = self._grid(parts.more, base)
            column.addWidget(_fold(more, [inside]))
        elif parts.more:
            column.addWidget(self._grid(parts.more, base))
        if parts.advanced:
            column.addWidget(_fold(advanced, [self._grid(parts.advanced, base)]))
        self.layout().addWidget(self._body)

    def set_recipe(self, recipe: Mapping[str, Any] | None) -> None:
        """Values of another recipe; what the user changed stays changed."""
        kept = self.values() if not self.problem() else {}
        base = base_values(self._fields, recipe)
        for name, row in self.rows.items():
            row.set_base(base[name])
        self.show_values(kept)

    def values(self) -> dict[str, Any]:
        """What differs from the recipe; settings that cannot be meant are left out."""
        return differing(
            {n: r.value for n, r in self.rows.items() if not r.reason},
            {n: r.base for n, r in self.rows.items()},
        )

    def show_values(self, values: Mapping[str, Any]) -> None:
        """Put kept values in; names the form does not know are passed over."""
        for name, value in values.items():
            row = self.rows.get(name)
            if row is None:
                continue
            try:
                row.field.check(value)
                row.show_value(value)
            except (Refused, ValueError, TypeError):
                row.show_value(row.base)

    def reset(self) -> None:
        """Everything back to the recipe."""
        for row in self.rows.values():
            row.show_value(row.base)
        self.changed.emit()

    def problem(self) -> str:
        """The first reason why the form cannot be used; empty when it can."""
        return next((r.reason for r in self.rows.values() if r.reason), "")

    def _grid(self, fields: Sequence[Field], base: Mapping[str, Any]) -> QWidget:
        box = QWidget()
        grid = QGridLayout(box)
        grid.setContentsMargins(0, 2, 0, 2)
        grid.setHorizontalSpacing(4)
        grid.setVerticalSpacing(3)
        grid.setColumnStretch(0, 5)
        grid.setColumnStretch(1, 4)
        for number, field in enumerate(fields):
            row = FieldRow(field, base[field.name], self)
            row.changed.connect(self.changed)
            self.rows[field.name] = row
            grid.addWidget(row.label, number, 0)
            grid.addWidget(row.editor, number, 1)
            grid.addWidget(row.back, number, 2)
        return box


def _fold(title: str, widgets: Sequence[QWidget]) -> QCollapsible:
    fold = fold_of(title)
    for widget in widgets:
        fold.addWidget(widget)
    return fold


def _editor(field: Field) -> Any:
    """The magicgui widget for a setting; texts are read by Field.read."""
    if field.choices is not None:
        choices = [(field.text_of(c) or "automatic", c) for c in field.choices]
        if field.optional and None not in field.choices:
            choices.insert(0, ("automatic", None))
        widget = create_widget(
            widget_type="ComboBox", name=field.name, options={"choices": choices}
        )
        widget.native.setMinimumContentsLength(4)
        return widget
    if field.kind == "bool":
        widget = create_widget(
            widget_type="CheckBox", name=field.name, value=bool(field.default)
        )
        widget.native.setText("")  # the label says it
        return widget
    widget = create_widget(widget_type="LineEdit", name=field.name, value="")
    if field.optional:
        widget.native.setPlaceholderText(field.empty)
    return widget
