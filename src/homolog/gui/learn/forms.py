"""A form made from the engine's description of settings: widgets only.

One row per setting: label with unit, editor, and a button that says whether the value
is the recipe's and takes it back. A text that cannot be meant gets a red frame, a
warning sign and the reason as tooltip. What a text means is decided in form_fields.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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

from homolog.config import merge
from homolog.gui.shared.widgets import ToolOneOf, fold_of

# Settings as a form needs them: label, range, text of a value and back; no Qt here.
#
# The engine describes each setting of a configuration as a plain dict (FIELD of
# ``homolog.machine``). Here such a dict becomes a Field that can write a value
# as text, read it back, and say in one sentence why a text cannot be meant.


# Endings of names that repeat the unit shown in the label.
_UNIT_ENDINGS = ("_deg", "_mm", "_hu", "_gb", "_voxel")
_SPLIT = re.compile(r"(?<=\d)\s*[x×]\s*(?=\d)|[,;\s]+")
_WHOLE = re.compile(r"[+-]?\d+")


class Refused(ValueError):
    """A text that cannot be meant; its sentence is shown beside the field."""


@dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
        name: Key in the configuration.
        kind: ``int``, ``float``, ``bool``, ``str``, ``tuple`` or ``dict``.
        default: Of the dataclass; a recipe may say otherwise.
        help: One line.
        unit: Of the number, or empty.
        low: Smallest value allowed; holds for each entry of a tuple.
        high: Largest value allowed.
        choices: The only values allowed, or None.
        item: Kind of a tuple's entries.
        length: Entries of a tuple, or None for any number.
        optional: Whether empty (None) is a value.
        advanced: Shown last.
        empty: What empty means, in a word.
        title: What people call it; else its name is spelt out.
        of_recipe: Whether what holds by itself is a recipe's, and no plain default.
    """

    name: str
    kind: str
    default: Any = None
    help: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None
    item: str | None = None
    length: int | None = None
    optional: bool = False
    advanced: bool = False
    empty: str = "automatic"
    title: str = ""
    of_recipe: bool = True

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Field:
        """From a FIELD of the engine's description; unknown keys are left out."""
        choices = plain.get("choices")
        return cls(
            name=str(plain["name"]),
            kind=str(plain.get("type", "str")),
            default=plain.get("default"),
            help=str(plain.get("help") or ""),
            unit=str(plain.get("unit") or ""),
            low=plain.get("min"),
            high=plain.get("max"),
            choices=None if choices is None else tuple(choices),
            item=plain.get("item"),
            length=plain.get("length"),
            optional=bool(plain.get("optional", False)),
            advanced=bool(plain.get("advanced", False)),
            empty=str(plain.get("empty") or "automatic"),
            title=str(plain.get("title") or ""),
            of_recipe=bool(plain.get("of_recipe", True)),
        )

    @property
    def label(self) -> str:
        """``rotate_deg`` in deg -> ``Rotate (deg)``."""
        if self.title:
            return self.title
        stem = self.name
        for ending in _UNIT_ENDINGS:
            stem = stem.removesuffix(ending) or stem
        words = stem.replace("_", " ").strip()
        words = words[:1].upper() + words[1:]
        return f"{words} ({self.unit})" if self.unit else words

    @property
    def range_text(self) -> str:
        """``1 to 512 voxel``; empty where anything goes."""
        if self.choices is not None:
            return "one of " + ", ".join(self.text_of(c) for c in self.choices)
        unit = f" {self.unit}" if self.unit else ""
        if self.low is not None and self.high is not None:
            return f"{_number(self.low)} to {_number(self.high)}{unit}"
        if self.low is not None:
            return f"{_number(self.low)}{unit} or more"
        if self.high is not None:
            return f"{_number(self.high)}{unit} or less"
        return ""

    def hint(self, base: Any) -> str:
        """The tooltip: help, range and the value the recipe gives."""
        first = self.help[:1].upper() + self.help[1:]
        parts = [first.rstrip(".") + "." if first else f"{self.label}."]
        if self.range_text:
            parts.append(f"Allowed: {self.range_text}.")
        if self.of_recipe:
            parts.append(f"Recipe: {self.text_of(base) or 'empty'}.")
        else:
            parts.append(f"Default: {self.text_of(base) or self.empty}.")
        return " ".join(parts)

    def text_of(self, value: Any) -> str:
        """A value as the form shows it; ``read`` is the inverse."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int | float):
            return _number(value)
        if isinstance(value, list | tuple):
            if any(isinstance(v, list | tuple) for v in value):
                return json.dumps(value)
            return ", ".join(self.text_of(v) for v in value)
        if isinstance(value, Mapping):
            return json.dumps(dict(value)) if value else ""
        return str(value)

    def read(self, text: str) -> Any:
        """The value a text means, checked.

        Raises:
            Refused: It cannot be meant; the sentence says what can.
        """
        text = text.strip()
        if not text and self.kind != "str":
            if self.optional:
                return None
            if self.kind == "dict":
                return {}
            if self.kind == "tuple" and self.length is None:
                return []
            raise Refused(f"{self.label} must not be empty.")
        if not text and self.optional:
            return None
        if self.kind == "tuple":
            value: Any = self._read_entries(text)
        elif self.kind == "dict":
            value = self._read_dict(text)
        else:
            value = self._read_one(text, self.kind)
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Refuse a value outside its range or choices."""
        if value is None:
            return
        if self.choices is not None and value not in self.choices:
            raise Refused(f"{self.label} must be {self.range_text}.")
        for entry in value if isinstance(value, list | tuple) else (value,):
            if isinstance(entry, bool) or not isinstance(entry, int | float):
                continue
            below = self.low is not None and entry < self.low
            above = self.high is not None and entry > self.high
            if below or above or not math.isfinite(entry):
                allowed = self.range_text or "a finite number"
                raise Refused(f"{self.label} must be {allowed}, not {_number(entry)}.")

    def _read_entries(self, text: str) -> list[Any]:
        if self.item == "tuple":
            return self._read_lists(text)
        parts = [p for p in _SPLIT.split(text.strip("()[] ")) if p]
        entries = [self._read_one(part, self.item or "float") for part in parts]
        if self.length is not None and len(entries) == 1:
            entries *= self.length  # one number for all axes
        if self.length is not None and len(entries) != self.length:
            raise Refused(
                f"{self.label} must be {self.length} values separated by commas, "
                f"not {len(entries)}."
            )
        return entries

    def _read_one(self, text: str, kind: str) -> Any:
        if kind == "int":
            if not _WHOLE.fullmatch(text):
                raise Refused(f"{self.label} must be a whole number, not {text!r}.")
            return int(text)
        if kind == "float":
            try:
                return float(text)
            except ValueError:
                raise Refused(f"{self.label} must be a number, not {text!r}.") from None
        if kind == "bool":
            low = text.lower()
            if low not in ("yes", "no", "true", "false"):
                raise Refused(f"{self.label} must be yes or no, not {text!r}.")
            return low in ("yes", "true")
        return text

    def _read_lists(self, text: str) -> list[Any]:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, list):
            raise Refused(f"{self.label} must look like [[0, 1], [2, 3]].")
        return value

    def _read_dict(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refused(f'{self.label} must look like {{"name": value}}.')
        return value


@dataclass(frozen=True)
class Sections:
    """Fields in the order a form shows them.

    Attributes:
        first: Visible at once.
        more: Under "More".
        advanced: Last, under "Advanced".
    """

    first: tuple[Field, ...]
    more: tuple[Field, ...]
    advanced: tuple[Field, ...]


def fields_of(plain: Iterable[Mapping[str, Any]]) -> tuple[Field, ...]:
    """All fields of a FIELD list."""
    return tuple(Field.of(p) for p in plain)


def arrange(
    fields: Iterable[Field], first: Sequence[str] = (), hidden: Sequence[str] = ()
) -> Sections:
    """Sort fields into what is seen first, more, and advanced.

    Args:
        fields: Of one configuration.
        first: Names seen at once, in this order.
        hidden: Names the panel asks for elsewhere.
    """
    known = {f.name: f for f in fields if f.name not in hidden}
    chosen = [known.pop(name) for name in first if name in known]
    rest = list(known.values())
    return Sections(
        tuple(chosen),
        tuple(f for f in rest if not f.advanced),
        tuple(f for f in rest if f.advanced),
    )


def base_values(
    fields: Iterable[Field], recipe: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What holds when the user says nothing: defaults, overridden by the recipe."""
    fields = tuple(fields)
    names = {f.name for f in fields}
    own = {k: v for k, v in (recipe or {}).items() if k in names}
    return merge({f.name: f.default for f in fields}, own)


def differing(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not the recipe's."""
    return {
        name: value
        for name, value in values.items()
        if name not in base or not _same(value, base[name])
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    return bool(a == b)


def _number(value: float) -> str:
    """Shortest text that reads back to the same number."""
    if isinstance(value, bool) or isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 1e9:
        return str(int(value))
    return repr(value)


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
        origin = "the recipe's value" if self.field.of_recipe else "the default"
        empty = "empty" if self.field.of_recipe else self.field.empty
        base = self.field.text_of(self.base) or empty
        self.back.setToolTip(f"{'Back to' if differs else 'This is'} {origin}: {base}")
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
        late: bool = False,
        parent: QWidget | None = None,
    ) -> None:
        """Make the form.

        Args:
            plain: FIELD dicts of the engine's description.
            first: Names of settings that are visible at once.
            hidden: Names that are asked for elsewhere.
            more: Title of the fold with the other settings.
            advanced: Title of the fold for settings few people touch.
            late: Its widgets are made by ``build``, or when a row is asked for: they
                cost a tenth of a second, and few people look at them.
            parent: Of the widget.
        """
        super().__init__(parent)
        self._late, self._built = late, False
        self._first, self._hidden = tuple(first), tuple(hidden)
        self._titles = (more, advanced)
        self._rows: dict[str, FieldRow] = {}
        self._fields: tuple[Field, ...] = ()
        self._base: dict[str, Any] = {}
        self._given: dict[str, Any] = {}  # what differs, until there are widgets
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
        was_built = self._built
        self._fields = tuple(Field.of(p) for p in plain)
        self._base = base_values(self._fields, recipe)
        self._given, self._rows, self._built = {}, {}, False
        if self._body is not None:
            self.layout().removeWidget(self._body)
            self._body.hide()
            self._body.deleteLater()
            self._body = None
        if was_built or not self._late:
            self.build()

    @property
    def has_fields(self) -> bool:
        """Whether there is anything to set."""
        return bool(self._fields)

    @property
    def is_built(self) -> bool:
        """Whether its widgets are made."""
        return self._built

    @property
    def rows(self) -> dict[str, FieldRow]:
        """Name -> its widgets."""
        self.build()
        return self._rows

    def build(self) -> None:
        """Make the widgets, if they are not there."""
        if self._built or not self._fields:
            return
        self._built, base = True, self._base
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
        self.show_values(self._given)

    def set_recipe(self, recipe: Mapping[str, Any] | None) -> None:
        """Values of another recipe; what the user changed stays changed."""
        kept = self.values() if not self.problem() else {}
        self._base = base_values(self._fields, recipe)
        for name, row in self._rows.items():
            row.set_base(self._base[name])
        self.show_values(kept)

    def values(self) -> dict[str, Any]:
        """What differs from the recipe; settings that cannot be meant are left out."""
        if not self._built:
            return differing(self._given, self._base)
        return differing(
            {n: r.value for n, r in self._rows.items() if not r.reason},
            {n: r.base for n, r in self._rows.items()},
        )

    def value_of(self, name: str) -> Any:
        """What one setting is; None where it cannot be meant or is not known."""
        if not self._built:
            return self._given.get(name, self._base.get(name))
        row = self._rows.get(name)
        return None if row is None or row.reason else row.value

    def show_values(self, values: Mapping[str, Any]) -> None:
        """Put kept values in; names the form does not know are passed over."""
        if not self._built:
            known = {field.name: field for field in self._fields}
            for name in values.keys() & known.keys() - set(self._hidden):
                with contextlib.suppress(Refused, ValueError, TypeError):
                    field, value = known[name], values[name]
                    field.check(value)
                    if field.choices is None and field.kind != "bool":
                        value = field.read(field.text_of(value))
                    self._given[name] = value
            return
        for name, value in values.items():
            row = self._rows.get(name)
            if row is None:
                continue
            try:
                row.field.check(value)
                row.show_value(value)
            except (Refused, ValueError, TypeError):
                row.show_value(row.base)

    def reset(self) -> None:
        """Everything back to the recipe."""
        self._given = {}
        for row in self._rows.values():
            row.show_value(row.base)
        self.changed.emit()

    def problem(self) -> str:
        """The first reason why the form cannot be used; empty when it can."""
        return next((r.reason for r in self._rows.values() if r.reason), "")

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
            self._rows[field.name] = row
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
    if field.optional or not field.of_recipe:
        widget.native.setPlaceholderText(field.empty)
    return widget
