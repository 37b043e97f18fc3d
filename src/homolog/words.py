"""Text for people: made safe to show, and how counts, sizes and times are put."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Iterable
from numbers import Integral
from typing import Any, TextIO

# Texts from files and people, made harmless where they are shown or written.
#
# A file's name, a DICOM tag or a label may hold what a terminal obeys (escape
# sequences) and what a spreadsheet computes (``=cmd|...``). Stored texts stay as they
# are; what is printed or put into a table goes through here.


# Control characters (but tab and line feed), what turns the direction of writing, what
# is not seen, line ends of Unicode, and bytes that were no UTF-8.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.IGNORECASE)
_COMPUTED = re.compile(r"'*[=+\-@\t\r\n]")
_MARKED = re.compile(r"'+[=+\-@\t\r\n]")


def visible(text: str, *, one_line: bool = False) -> str:
    r"""A text without anything that acts on a terminal; such characters are spelt out.

    Args:
        text: From anywhere.
        one_line: Spell out tabs and line ends too, as ``\t`` and ``\n``.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = _ACTING.sub(_spelt, text)
    return shown.replace("\t", r"\t").replace("\n", r"\n") if one_line else shown


def _spelt(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name
        return f"\\x{code - 0xDC00:02x}"
    short = {"\r": r"\r", "\x0b": r"\v", "\x0c": r"\f"}.get(found[0])
    if short is not None:
        return short
    wide = f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return f"\\x{code:02x}" if code <= 0xFF else wide


class VisibleStream:
    """A text stream on which nothing acts; for code that prints by itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what ``visible`` makes of a text."""
        return self._stream.write(visible(text))

    def flush(self) -> None:
        """Pass on what was written."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person reads along."""
        return self._stream.isatty()


class _UnixRows:
    """Takes the rows of a csv writer and ends each by a line feed alone.

    The writer itself has to believe in CR LF: only then does it quote a carriage return
    within a cell, which otherwise ends the row for every reader.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, row: str) -> int:
        """One whole row."""
        return self._stream.write(row.removesuffix("\r\n") + "\n")


def cell(value: Any) -> Any:
    """A cell that a spreadsheet shows and does not compute.

    A text that begins like a formula gets an apostrophe before it; numbers, also those
    already written out, stay. ``cell_text`` takes it away again, exactly.
    """
    if not isinstance(value, str) or len(value) < 2 or _NUMBER.fullmatch(value):
        return value
    return f"'{value}" if _COMPUTED.match(value) else value


def cells(values: Iterable[Any]) -> list[Any]:
    """A row of cells."""
    return [cell(value) for value in values]


def as_csv(
    columns: Iterable[Any], rows: Iterable[Iterable[Any]], delimiter: str = ","
) -> str:
    """A table as CSV (RFC 4180, but rows end by a line feed alone).

    Args:
        columns: The first line.
        rows: A value per column; None leaves its cell empty.
        delimiter: Between two cells.
    """
    text = io.StringIO()
    writer = csv.writer(_UnixRows(text), delimiter=delimiter, lineterminator="\r\n")
    writer.writerows(map(cells, (columns, *rows)))
    return text.getvalue()


def cell_text(text: str) -> str:
    """Inverse of ``cell``, for tables that are read."""
    return text[1:] if len(text) > 2 and _MARKED.match(text) else text


# Quantities, never more exact than they help.


def duration(seconds: float) -> str:
    """``3.1 s``, ``45 s``, ``12 min``, ``3 h 20 min``, ``2 days 5 h``.

    Args:
        seconds: ``?`` for what cannot be known: NaN, infinity, below 0.
    """
    if not 0 <= seconds < math.inf:
        return "?"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 10:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    if not days:
        return f"{hours} h"
    return f"{counted(days, 'day')} {hours} h" if hours else counted(days, "day")


def utc_now() -> str:
    """``2026-03-01T17:40:05Z``, as files say when they were made."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def human_bytes(count: float) -> str:
    """``12 bytes``, ``4.1 GB``, ``38 MB``; powers of 1000."""
    if count < 1000:
        return f"{count:.0f} bytes"
    count = min(count, 10**30)  # larger whole numbers are no floats
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"


def counted(count: int, word: str) -> str:
    """``1 case``, ``3 cases``, ``2 classes``, ``1,200 scans``."""
    ending = "" if count == 1 else "es" if word.endswith(("s", "x")) else "s"
    return f"{count:,} {word}{ending}"


def listed(parts: Iterable[object], last: str = "and", most: int = 0) -> str:
    """``a, b and c``.

    Args:
        parts: As ``str`` puts them.
        last: Word before the last one.
        most: Of more than these the rest is counted: ``a, b and 7 more``; 0: all.
    """
    texts = [str(part) for part in parts]
    if 0 < most < len(texts):
        texts = [*texts[: most - 1], f"{len(texts) - most + 1} more"]
    *first, end = texts or [""]
    return f"{', '.join(first)} {last} {end}" if first else end


def times(lengths: Iterable[Any], digits: int = 6) -> str:
    """``64 x 64 x 32``, ``0.8 x 0.8 x 1.5``.

    Args:
        lengths: In the order they are to be shown.
        digits: Significant ones, of numbers that are not whole.
    """
    return " x ".join(
        str(v) if isinstance(v, Integral) else f"{float(v):.{digits}g}" for v in lengths
    )


def volume_text(volume_ml: float) -> str:
    """Millilitres with as many digits as mean something."""
    if volume_ml >= 100:
        return f"{volume_ml:,.0f} ml"
    if volume_ml >= 1:
        return f"{volume_ml:.1f} ml"
    return f"{volume_ml:.3f} ml"


def lengths_text(lengths: Iterable[Any], unit: str = "mm") -> str:
    """``0.8 x 0.8 x 1.5 mm (x, y, z)``; the order is left out where all agree.

    Args:
        lengths: Of a voxel or a window, along z, y, x.
        unit: Of each.
    """
    parts = [_brief(v) for v in tuple(lengths)[::-1]]
    order = "" if len(set(parts)) == 1 else " (x, y, z)"
    return f"{' x '.join(parts)} {unit}{order}"


def spacing_text(spacing_mm: Iterable[Any]) -> str:
    """``1.5 mm`` of cubes; other voxels as in ``lengths_text``."""
    lengths = tuple(spacing_mm)
    alike = len({_brief(v) for v in lengths}) == 1
    return f"{_brief(lengths[0])} mm" if alike else lengths_text(lengths)


def _brief(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{float(value):.3g}"


# Scores as people call them, by their names in tables.
METRICS = {
    "dice": "Dice", "iou": "IoU", "nsd": "NSD", "hd95_mm": "HD95 (mm)", "auc": "AUC",
    "auc_mean": "AUC", "accuracy": "accuracy", "psnr": "PSNR (dB)", "ssim": "SSIM",
    "nmse": "NMSE", "mae": "mean error", "ap50": "AP50", "ap10": "AP10", "ap": "AP",
    "froc": "FROC", "froc10": "FROC10",
}  # fmt: skip


def metric_title(name: str) -> str:
    """What people call a score."""
    return METRICS.get(name, name.replace("_", " "))


def metric_unit(name: str) -> str:
    """``dB`` or ``mm``; empty for a share."""
    return metric_title(name).partition("(")[2].rstrip(")")


def score_words(name: str, value: float) -> str:
    """A score with its name: ``Dice 0.812``, ``PSNR 28.19 dB``."""
    title, unit = metric_title(name).partition(" (")[0], metric_unit(name)
    return f"{title} {value:.2f} {unit}" if unit else f"{title} {value:.3f}"
