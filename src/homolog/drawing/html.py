"""HTML reports, with curves and bars as inline SVG."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from homolog.drawing.pictures import Picture, as_bytes, data_address
from homolog.writing import write_text

# Colour-blind safe (Okabe and Ito).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9")
# Of many groups, as far apart as colours can be (after Kelly 1965), on white.
MANY = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c8a200", "#56b4e9", "#8b1a1a",
    "#6a3d9a", "#7f8c00", "#e8488a", "#00606b", "#b8860b", "#5a5a5a", "#3ac13a",
    "#2b2bd8", "#9c6b4e",
)  # fmt: skip
# What all others are compared with.
GREY = "#7a7f87"
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 36


def curve_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_title: str,
    y_title: str,
    width: int = 560,
    height: int = 260,
    smooth: int = 0,
    colours: Sequence[str] = PALETTE,
) -> str:
    """Lines over a common axis.

    Args:
        series: Name -> (x, y); points that are not finite are left out.
        x_title: Under the axis.
        y_title: Beside the axis.
        width: Pixels.
        height: Pixels.
        smooth: Points averaged for the strong line; the raw one stays pale behind it.
        colours: Of the series, in their order.
    """
    found = {name: _finite(*xy) for name, xy in series.items()}
    cleaned = {name: xy for name, xy in found.items() if len(xy[0])}
    if not cleaned:
        return ""
    frame = _Frame(
        np.concatenate([x for x, _ in cleaned.values()]),
        np.concatenate([y for _, y in cleaned.values()]),
        width,
        height,
    )
    parts = [frame.axes(x_title, y_title)]
    for i, (name, (x, y)) in enumerate(cleaned.items()):
        colour = colours[list(found).index(name) % len(colours)]
        strong = _smoothed(y, smooth)
        if smooth > 1 and len(y) > smooth:
            parts.append(frame.line(x, y, colour, 1.0, 0.25))
        parts.append(frame.line(x, strong, colour, 2.0, 1.0))
        parts.append(_legend(name, colour, i, width))
    return _svg(width, height, "".join(parts))


def bar_chart(
    rows: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    width: int = 560,
    most: float = 1.0,
) -> str:
    """Horizontal bars: one group per row, one bar per series, from 0 to ``most``."""
    names = list(next(iter(rows.values()))) if rows else []
    bar, gap = 9, 9
    left = max(118, 16 + 6 * max(map(len, rows), default=0))
    group = bar * len(names) + gap
    height = group * len(rows) + 44
    room = width - left - 46
    parts = [f'<text x="{left}" y="12" class="t">{html.escape(title)}</text>']
    for i, name in enumerate(names):
        parts.append(_legend(name, PALETTE[i % len(PALETTE)], i, width))
    for r, (row, values) in enumerate(rows.items()):
        top = 34 + r * group
        middle = top + bar * len(names) / 2 + 4
        label = html.escape(row.replace("_", " "))
        parts.append(f'<text x="{left - 8}" y="{middle}" class="e">{label}</text>')
        for i, name in enumerate(names):
            value = values[name]
            length = 0.0 if value != value else min(max(value / most, 0), 1) * room
            y = top + i * bar
            shown = "–" if value != value else f"{value:.2f}"
            foot = y + bar - 1.5
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 1.5}" '
                f'fill="{PALETTE[i % len(PALETTE)]}"/>'
                f'<text x="{left + length + 4:.1f}" y="{foot}" class="s">{shown}</text>'
            )
    return _svg(width, height, "".join(parts))


# Where each series stands beside the others, and how far a whisker's cap reaches.
_BESIDE, _CAP, _KEYS = 0.07, 3.0, 120


def interval_chart(
    series: Mapping[str, Sequence[tuple[float, float, float] | None]],
    *,
    ticks: Sequence[str],
    x_title: str,
    y_title: str,
    width: int = 640,
    height: int = 300,
    zero: bool = False,
    colours: Sequence[str] = PALETTE,
    keys: bool = True,
) -> str:
    """Means with intervals over named places, joined by lines.

    Args:
        series: Name -> (mean, low, high) at each place; None leaves it out. One that
            has none keeps its colour for drawings beside this one.
        ticks: Names of the places.
        x_title: Under the axis.
        y_title: Beside the axis.
        width: Pixels, the key on the right included.
        height: Pixels.
        zero: Whether to draw a line at 0.
        colours: Of the series, in their order.
        keys: Whether the names are told on the right, which takes 120 pixels.
    """
    found = {
        name: [(i, *entry) for i, entry in enumerate(entries) if entry is not None]
        for name, entries in series.items()
    }
    heights = [v for rows in found.values() for row in rows for v in row[1:]]
    if not heights:
        return ""
    heights += [0.0] * zero
    frame = _Frame(np.zeros(1), np.array(heights, float), width - _KEYS * keys, height)
    frame.x_ticks = [-0.5, len(ticks) - 0.5]
    parts = [frame.axes(x_title, y_title, dict(enumerate(ticks)))]
    if zero:
        ends = np.array(frame.x_ticks)
        parts.append(frame.line(ends, np.zeros(2), "#666", 1.0, 1.0))
    told = 0
    for number, (name, rows) in enumerate(found.items()):
        colour = colours[number % len(colours)]
        shift = _BESIDE * (number - (len(found) - 1) / 2)
        x = np.array([row[0] + shift for row in rows], float)
        y = np.array([row[1] for row in rows], float)
        parts.append(frame.line(x, y, colour, 2.0, 1.0))
        for place, row in zip(x, rows, strict=True):
            parts.append(frame.whisker(place, row[1], row[2], row[3], colour))
        if rows and keys:
            parts.append(_legend(name[:18], colour, told, width))
            told += 1
    return _svg(width, height, "".join(parts))


# Of a scatter: a dot's radius, and the room of its key.
_DOT, _KEY_WIDTH = 2.6, 132


def scatter_chart(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    colours: Mapping[str, str],
    width: int = 540,
    height: int = 330,
    keys: bool = True,
) -> str:
    """Dots on a plane without units, one colour for each group.

    Args:
        groups: Name -> (x, y).
        title: Above it.
        colours: Name -> colour.
        width: Pixels, the key on the right included.
        height: Pixels.
        keys: Whether the names are told on the right, which takes 132 pixels.
    """
    known = [np.stack(_finite(*xy), axis=1) for xy in groups.values()]
    dots = np.concatenate(known) if known else np.zeros((0, 2))
    if not len(dots):
        return ""
    low, high = dots.min(axis=0), dots.max(axis=0)
    room = np.array([width - _KEY_WIDTH * keys - 16, height - 36], float)
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    corner = np.array([8.0, 28.0]) + (room - scale * (high - low)) / 2
    parts = [f'<text x="8" y="14" class="t">{html.escape(title)}</text>']
    for number, (name, own) in enumerate(zip(groups, known, strict=True)):
        places = corner + scale * (own - low)
        colour = colours[name]
        circles = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}"/>' for x, y in places
        )
        parts.append(f'<g fill="{colour}" opacity="0.75">{circles}</g>')
        if keys:
            x, y = width - _KEY_WIDTH + 4, 34 + 16 * number
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
                f'<text x="{x + 9}" y="{y + 4}">{html.escape(name[:20])}</text>'
            )
    return _svg(width, height, "".join(parts))


def box_chart(
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    y_title: str,
    colours: Sequence[str] = PALETTE,
    width: int = 640,
    height: int = 300,
) -> str:
    """Box plots: median, quartiles, and whiskers from the 5th to the 95th percentile.

    Args:
        rows: Place on the axis -> series -> values; an empty series has no box.
        y_title: Beside the axis.
        colours: Of the series, in their order.
        width: Pixels, the key on the right included.
        height: Pixels.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    known = {
        (place, name): np.percentile(np.asarray(values, float), (5, 25, 50, 75, 95))
        for place, row in rows.items()
        for name, values in row.items()
        if len(values)
    }
    if not known:
        return ""
    heights = np.concatenate([*known.values(), np.zeros(1)])
    frame = _Frame(np.zeros(1), heights, width - _KEYS, height)
    frame.x_ticks = [-0.5, len(rows) - 0.5]
    parts = [frame.axes("", y_title, dict(enumerate(rows)))]
    parts.append(frame.line(np.array(frame.x_ticks), np.zeros(2), "#666", 1.0, 1.0))
    wide = min(0.3, 0.7 / len(names))
    for number, name in enumerate(names):
        colour = colours[number % len(colours)]
        for place, row in enumerate(rows):
            if (row, name) in known:
                middle = place + wide * (number - (len(names) - 1) / 2)
                parts.append(frame.box(middle, 0.8 * wide, known[row, name], colour))
        parts.append(_legend(name[:18], colour, number, width))
    return _svg(width, height, "".join(parts))


# Of a matrix: a cell's side, and the room of the names beside and above it.
_CELL, _NAMES = 22, 124


def matrix_chart(
    values: Sequence[Sequence[float]], names: Sequence[str], *, title: str
) -> str:
    """A square of numbers, darker where higher; NaN is left white.

    Args:
        values: (K, K), -1..1.
        names: Of the K rows and columns.
        title: Above it.
    """
    known = [v for row in values for v in row if v == v]
    if not known:
        return ""
    low, high = min(known), max(known)
    parts = [f'<text x="4" y="14" class="t">{html.escape(title)}</text>']
    top = 26
    for r, (name, row) in enumerate(zip(names, values, strict=True)):
        y = top + _CELL * r
        label = html.escape(f"{r + 1} {name[:18]}")
        parts.append(f'<text x="{_NAMES - 6}" y="{y + 15}" class="e">{label}</text>')
        for c, value in enumerate(row):
            if value != value:
                continue
            level = (value - low) / max(high - low, 1e-9)
            red, green, blue = (round(255 - level * d) for d in (255, 141, 77))
            ink = "#fff" if level > 0.55 else "#333"
            x = _NAMES + _CELL * c
            parts.append(
                f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
                f'fill="rgb({red},{green},{blue})"/>'
                f'<text x="{x + _CELL / 2}" y="{y + 14}" class="m s" '
                f'style="fill:{ink}">{100 * value:.0f}</text>'
            )
    below = top + _CELL * len(names)
    for c in range(len(names)):
        middle = _NAMES + _CELL * (c + 0.5)
        parts.append(f'<text x="{middle}" y="{below + 14}" class="m">{c + 1}</text>')
    width = max(_NAMES + _CELL * len(names) + 8, 12 + 7 * len(title))
    return _svg(width, below + 22, "".join(parts))


# Of a figure: the room of a panel's title, of the key below all, and between panels.
_TITLE, _KEY_ROW, _GAP = 22, 24, 12


def figure(
    panels: Sequence[tuple[str, str]],
    keys: Mapping[str, str],
    *,
    width: int,
    height: int,
    columns: int = 2,
) -> str:
    """Drawings of one size under titles, with one key below: a file of its own.

    Args:
        panels: Title and SVG drawing of each.
        keys: Name -> colour.
        width: Pixels of a drawing.
        height: Pixels of a drawing.
        columns: Drawings side by side.

    Returns:
        SVG; empty without panels.
    """
    if not panels:
        return ""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    whole = columns * (width + _GAP) - _GAP
    parts = []
    for number, (title, drawing) in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = column * (width + _GAP), row * (height + _TITLE + _GAP)
        parts.append(
            f'<text x="{x + _LEFT}" y="{y + 16}" class="h">{html.escape(title)}</text>'
            + drawing.replace("<svg ", f'<svg x="{x}" y="{y + _TITLE}" ', 1)
        )
    top = rows * (height + _TITLE + _GAP)
    placed, lines = _key_places(keys, whole)
    for (name, colour), (x, line) in zip(keys.items(), placed, strict=True):
        y = top + 14 + line * _KEY_ROW
        parts.append(
            f'<rect x="{x}" y="{y - 10}" width="16" height="10" fill="{colour}"/>'
            f'<text x="{x + 22}" y="{y}" class="k">{html.escape(name)}</text>'
        )
    tall = top + lines * _KEY_ROW
    # Light on any page: a README is also read on a dark one.
    ground = f'<rect width="{whole}" height="{tall}" fill="#fff"/>'
    return _svg(whole, tall, ground + "".join(parts))


def _key_places(
    keys: Mapping[str, str], width: int
) -> tuple[list[tuple[int, int]], int]:
    """Where each name of a key stands: pixels from the left, and line; lines taken."""
    placed = []
    x, line = _LEFT, 0
    for name in keys:
        room = 22 + round(7.3 * len(name)) + 22
        if x > _LEFT and x + room > width:
            x, line = _LEFT, line + 1
        placed.append((x, line))
        x += room
    return placed, line + 1


class _Frame:
    """Data coordinates on the drawing."""

    def __init__(self, x: np.ndarray, y: np.ndarray, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.x_ticks = _ticks(float(x.min()), float(x.max()))
        self.y_ticks = _ticks(float(y.min()), float(y.max()))

    def across(self, x: np.ndarray | float) -> np.ndarray:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        room = self.width - _LEFT - _RIGHT
        return np.asarray(_LEFT + (np.asarray(x) - low) / (high - low) * room)

    def down(self, y: np.ndarray | float) -> np.ndarray:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        room = self.height - _TOP - _BOTTOM
        return np.asarray(_TOP + (high - np.asarray(y)) / (high - low) * room)

    def axes(
        self, x_title: str, y_title: str, names: Mapping[int, str] | None = None
    ) -> str:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        parts = []
        for tick in self.y_ticks:
            y = float(self.down(tick))
            parts.append(
                f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="g"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="e">{tick:g}</text>'
            )
        numbers = {tick: f"{tick:g}" for tick in self.x_ticks}
        for place, name in (names or numbers).items():
            x = float(self.across(place))
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 14}" class="m">'
                f"{html.escape(name)}</text>"
            )
        middle = (_LEFT + right) / 2
        half = (_TOP + bottom) / 2
        parts.append(
            f'<text x="{middle}" y="{self.height - 4}" class="m">'
            f"{html.escape(x_title)}</text>"
            f'<text transform="translate(12 {half}) rotate(-90)" class="m">'
            f"{html.escape(y_title)}</text>"
        )
        return "".join(parts)

    def line(
        self,
        x: np.ndarray,
        y: np.ndarray,
        colour: str,
        thickness: float,
        opacity: float,
    ) -> str:
        points = " ".join(
            f"{a:.1f},{b:.1f}"
            for a, b in zip(self.across(x), self.down(y), strict=True)
        )
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" '
            f'stroke-width="{thickness}" opacity="{opacity}"/>'
        )

    def whisker(
        self, place: float, mean: float, low: float, high: float, colour: str
    ) -> str:
        """A dot, and a line with caps from low to high."""
        x = float(self.across(place))
        dot, bottom, top = (float(self.down(v)) for v in (mean, low, high))
        path = "".join(f"M{x - _CAP:.1f} {y:.1f}h{2 * _CAP:g}" for y in (bottom, top))
        return (
            f'<path d="M{x:.1f} {bottom:.1f}V{top:.1f}{path}" stroke="{colour}" '
            f'stroke-width="1.2" fill="none"/>'
            f'<circle cx="{x:.1f}" cy="{dot:.1f}" r="3.2" fill="{colour}"/>'
        )

    def box(self, place: float, wide: float, values: np.ndarray, colour: str) -> str:
        """A box from the second to the fourth of five values, the third a line."""
        left, right = (float(self.across(place + side * wide / 2)) for side in (-1, 1))
        x = (left + right) / 2
        low, first, middle, third, high = (float(self.down(v)) for v in values)
        ends = f"M{x:.1f} {low:.1f}V{first:.1f}M{x:.1f} {third:.1f}V{high:.1f}"
        across = f"M{left:.1f} {middle:.1f}H{right:.1f}"
        return (
            f'<rect x="{left:.1f}" y="{third:.1f}" width="{right - left:.1f}" '
            f'height="{max(first - third, 0.5):.1f}" fill="{colour}" '
            f'fill-opacity="0.25" stroke="{colour}"/>'
            f'<path d="{ends}{across}" stroke="{colour}" stroke-width="1.6" '
            'fill="none"/>'
        )


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose a range."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / wanted
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw - 1e-12)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [round(float(i * step), 10) for i in np.arange(first, last + 1)]


def _finite(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    across, up = np.asarray(x, float), np.asarray(y, float)
    good = np.isfinite(across) & np.isfinite(up)
    return across[good], up[good]


def _smoothed(y: np.ndarray, count: int) -> np.ndarray:
    """Running mean over ``count`` points, narrower at the ends."""
    if count <= 1 or len(y) <= count:
        return y
    sums = np.concatenate([[0.0], np.cumsum(y)])
    half = count // 2
    place = np.arange(len(y))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(y))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _legend(name: str, colour: str, index: int, width: int) -> str:
    x, y = width - _RIGHT - 4, 12 + 15 * index
    return (
        f'<text x="{x - 16}" y="{y}" class="e">{html.escape(name)}</text>'
        f'<rect x="{x - 12}" y="{y - 8}" width="12" height="8" fill="{colour}"/>'
    )


def _svg(width: int, height: int, content: str) -> str:
    style = (
        "text{font:11px system-ui,sans-serif;fill:#444}.e{text-anchor:end}"
        ".m{text-anchor:middle}.s{font-size:9px}.t{font-weight:600}"
        ".g{stroke:#e4e4e4;stroke-width:1}"
        ".h{font-size:14px;font-weight:600}.k{font-size:13px}"
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{content}</svg>'
    )


class Page:
    """One HTML page that needs nothing else: text, tables, pictures and charts inside.

    It grows from top to bottom and is laid out by ``resources/report.html``. Texts are
    escaped, charts are not.

    Args:
        title: Heading.
        lead: One or two sentences under it.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self._lead = lead
        self._parts: list[dict[str, Any]] = [{"heading": "", "blocks": []}]

    def tiles(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Large figures: (what, value, remark) each."""
        self._parts.append({"heading": "", "blocks": []})
        self._add("tiles", rows=rows)

    def section(self, heading: str, text: str = "") -> None:
        """Begin a section."""
        self._parts.append({"heading": heading, "blocks": []})
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._add("text", text=text)

    def note(self, text: str) -> None:
        """A paragraph in small print."""
        self._add("note", text=text)

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        best: Sequence[int | None] = (),
    ) -> None:
        """Rows of texts; all but the first column are numbers.

        Args:
            head: One per column.
            rows: Texts.
            best: Column to stress, per row.
        """
        stressed = [*best, *[None] * (len(rows) - len(best))]
        self._add("table", head=head, rows=list(zip(rows, stressed, strict=False)))

    def figure(
        self,
        picture: Picture,
        caption: str,
        keys: Sequence[tuple[str, tuple[float, float, float]]] = (),
    ) -> None:
        """A picture with its caption and a key of colours."""
        address = data_address(as_bytes(picture))
        legend = [(name, _css(colour)) for name, colour in keys]
        self._add("figure", address=address, caption=caption, keys=legend)

    def charts(self, *drawings: str) -> None:
        """SVG drawings side by side; empty ones are left out."""
        if inside := [d for d in drawings if d]:
            self._add("charts", drawings=inside)

    def write(self, path: Path) -> None:
        """Write the page, all at once."""
        layout = Environment(
            loader=PackageLoader("homolog", "resources"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
            keep_trailing_newline=True,
        ).get_template("report.html")
        write_text(
            path, layout.render(title=self.title, lead=self._lead, parts=self._parts)
        )

    def _add(self, kind: str, **content: Any) -> None:
        self._parts[-1]["blocks"].append({"kind": kind, **content})


def _css(colour: tuple[float, float, float]) -> str:
    return f"rgb({','.join(str(round(c * 255)) for c in colour)})"
