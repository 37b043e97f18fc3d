"""Settings as a form needs them: label, range, text of a value and back; no Qt here.

The engine describes each setting of a configuration as a plain dict (FIELD of
``homolog.study.describe``). Here such a dict becomes a Field that can write a value as
text, read it back, and say in one sentence why a text cannot be meant.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from homolog.config import merge

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
        )

    @property
    def label(self) -> str:
        """``rotate_deg`` in deg -> ``Rotate (deg)``."""
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
        parts.append(f"Recipe: {self.text_of(base) or 'empty'}.")
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
