"""What label values are called, in the tables that other programs keep beside them.

Colour tables of 3D Slicer (``.ctbl``) and FreeSurfer, label descriptions of ITK-SNAP
(``.txt``, ``.label``), and tables with a heading (``_dseg.tsv`` of BIDS, ``.csv``).
"""

from __future__ import annotations

import csv
import functools
import io
import re
from pathlib import Path

# In the order in which they are looked for.
_SUFFIXES = (".ctbl", ".label", ".txt", ".tsv", ".csv")
_LARGEST = 1 << 20  # bytes; no table of names is longer
_MOST_LOOKED_AT = 40  # such files of a folder
# ``index r g b alpha visible mesh "name"``.
_SNAP = re.compile(r'\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*$')
# ``index name r g b alpha``; Slicer joins the words of a name by underscores.
_COLOUR = re.compile(r"\s*(\d+)\s+(\S+|\".*\")((?:\s+-?[\d.]+){3,4})\s*$")
_TABLE_WORDS = ("seg", "label", "lut", "colo", "class", "structure", "names")
_VALUES = ("index", "value", "labelvalue", "label_value", "label value", "id")
_NAMES = ("name", "labelname", "label_name", "label name", "structure", "label")


def table_beside(label: Path, stem: str) -> dict[int, str]:
    """Value -> name of the table that belongs to a label file; empty where none does.

    The one of the file's own name, or the only one of its folder or the one above.

    Args:
        label: The label file.
        stem: Its name without suffix.
    """
    own = [label.with_name(stem + suffix) for suffix in _SUFFIXES]
    for path in own:
        if path.is_file() and (names := read_label_table(path)):
            return names
    for folder in (label.parent, label.parent.parent):
        found = _tables_in(folder, _stamp(folder))
        others = [(path, names) for path, names in found if path not in own]
        if len(others) == 1:
            return dict(others[0][1])
    return {}


def _stamp(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=64)
def _tables_in(folder: Path, _stamp: int) -> tuple[tuple[Path, dict[int, str]], ...]:
    """The tables of a folder that name labels for all its files.

    Files that are called after a scan of the folder are that scan's own.
    """
    try:
        inside = sorted(p for p in folder.iterdir() if p.is_file())
    except OSError:
        return ()
    tables = [p for p in inside if p.suffix.lower() in _SUFFIXES]
    if len(tables) > _MOST_LOOKED_AT:
        return ()
    stems = {p.name.split(".")[0] for p in inside if p not in tables}
    shared = [p for p in tables if p.name.split(".")[0] not in stems and _tells(p)]
    found = ((path, read_label_table(path)) for path in shared)
    return tuple((path, names) for path, names in found if names)


def _tells(path: Path) -> bool:
    """Whether a table's name says that it is one of labels; many are of patients."""
    free = path.suffix.lower() not in (".tsv", ".csv")
    return free or any(word in path.stem.lower() for word in _TABLE_WORDS)


def read_label_table(path: Path) -> dict[int, str]:
    """Value -> name of a table; empty where it is none. Background is left out."""
    try:
        if path.stat().st_size > _LARGEST:
            return {}
        data = path.read_bytes()
    except OSError:
        return {}
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    try:
        in_columns = path.suffix.lower() in (".tsv", ".csv")
        names = _of_table(text) if in_columns else _of_lines(text)
    except ValueError:  # a number of thousands of digits
        return {}
    return {v: n for v, n in sorted(names.items()) if v > 0 and n}


def _of_lines(text: str) -> dict[int, str]:
    """Of a colour table or label description; every line must be of that kind."""
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    for kind, is_slicer in ((_SNAP, False), (_COLOUR, True)):
        found = [kind.match(line) for line in lines]
        if not lines or not all(found):
            continue
        names = {int(m[1]): m[2].strip('"').strip() for m in found if m}
        if is_slicer and "olor table file" in text[:400]:
            names = {v: n.replace("_", " ") for v, n in names.items()}
        return names
    return {}


def _of_table(text: str) -> dict[int, str]:
    """Of a table with a column of values and one of names."""
    first = text.splitlines()[0] if text.strip() else ""
    sign = max("\t,;", key=first.count)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=sign))
    except csv.Error:
        return {}
    columns = {str(k).strip().lower(): k for row in rows[:1] for k in row}
    value = next((columns[c] for c in _VALUES if c in columns), None)
    name = next((columns[c] for c in _NAMES if c in columns), None)
    if value is None or name is None or "image" in columns:
        return {}
    names = {}
    for row in rows:
        number, said = str(row.get(value) or "").strip(), str(row.get(name) or "")
        if not number.isdecimal() or len(number) > 5:
            return {}  # a table of other things
        names[int(number)] = said.strip()
    return names
