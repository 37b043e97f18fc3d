"""One HTML page that needs nothing else: text, tables, pictures and charts inside."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from homolog.data.points_io import write_text
from homolog.drawing.pictures import Picture, as_bytes
from homolog.drawing.png import data_address

_STYLE = """
:root{--ink:#1d2530;--soft:#5b6675;--line:#dfe4ea;--paper:#fff;--ground:#f3f5f8;
--good:#00734f;--accent:#0b5cad}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.55 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:27px;margin:0 0 4px}
h2{font-size:19px;margin:0 0 8px}
.lead{color:var(--soft);margin:0 0 22px;max-width:76ch}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:20px 22px;margin:0 0 18px}
p{margin:0 0 12px;max-width:86ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:14px;
margin:0 0 18px}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:14px 18px}
.tile b{display:block;font-size:28px;font-weight:650;letter-spacing:-.5px}
.tile span{color:var(--soft)}
.tile em{font-style:normal;display:block;color:var(--soft);font-size:13px}
table{border-collapse:collapse;margin:4px 0 12px;font-variant-numeric:tabular-nums}
th,td{padding:5px 16px 5px 0;text-align:left;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft)}
td.n,th.n{text-align:right}
td.best{font-weight:650;color:var(--good)}
figure{margin:6px 0 16px}
figure img{display:block;max-width:100%;height:auto;background:#000;border-radius:6px}
figcaption{color:var(--soft);font-size:13.5px;margin-top:7px;max-width:92ch}
.keys{display:flex;flex-wrap:wrap;gap:4px 14px;margin:6px 0 0;font-size:13px;
color:var(--soft)}
.keys i{display:inline-block;width:11px;height:11px;border-radius:3px;
margin-right:5px;vertical-align:-1px}
.charts{display:flex;flex-wrap:wrap;gap:18px}
.note{color:var(--soft);font-size:13.5px}
code{background:var(--ground);border:1px solid var(--line);border-radius:4px;
padding:1px 5px;font-size:13px}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""


class Page:
    """A page that grows from top to bottom. Texts are escaped, charts are not.

    Args:
        title: Heading.
        lead: One or two sentences under it.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self._parts = [
            f"<h1>{html.escape(title)}</h1>",
            f'<p class="lead">{html.escape(lead)}</p>',
        ]
        self._open = False

    def tiles(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Large figures: (what, value, remark) each."""
        self._close()
        cells = "".join(
            f'<div class="tile"><span>{html.escape(what)}</span>'
            f"<b>{html.escape(value)}</b><em>{html.escape(remark)}</em></div>"
            for what, value, remark in rows
        )
        self._parts.append(f'<div class="tiles">{cells}</div>')

    def section(self, heading: str, text: str = "") -> None:
        """Begin a section."""
        self._close()
        self._parts.append(f"<section><h2>{html.escape(heading)}</h2>")
        self._open = True
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def note(self, text: str) -> None:
        """A paragraph in small print."""
        self._parts.append(f'<p class="note">{html.escape(text)}</p>')

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

        def cell(tag: str, text: str, column: int, stress: bool = False) -> str:
            kind = ("n" if column else "") + (" best" if stress else "")
            mark = f' class="{kind.strip()}"' if kind.strip() else ""
            return f"<{tag}{mark}>{html.escape(text)}</{tag}>"

        lines = ["".join(cell("th", t, i) for i, t in enumerate(head))]
        for r, row in enumerate(rows):
            stressed = best[r] if r < len(best) else None
            lines.append(
                "".join(cell("td", t, i, i == stressed) for i, t in enumerate(row))
            )
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        self._parts.append(f"<table>{body}</table>")

    def figure(
        self,
        picture: Picture,
        caption: str,
        keys: Sequence[tuple[str, tuple[float, float, float]]] = (),
    ) -> None:
        """A picture with its caption and a key of colours."""
        legend = "".join(
            f'<span><i style="background:{_css(colour)}"></i>{html.escape(name)}</span>'
            for name, colour in keys
        )
        below = f'<div class="keys">{legend}</div>' if keys else ""
        self._parts.append(
            f'<figure><img alt="{html.escape(caption, quote=True)}" '
            f'src="{data_address(as_bytes(picture))}">'
            f"<figcaption>{html.escape(caption)}</figcaption>{below}</figure>"
        )

    def charts(self, *drawings: str) -> None:
        """SVG drawings side by side; empty ones are left out."""
        inside = "".join(f"<div>{d}</div>" for d in drawings if d)
        if inside:
            self._parts.append(f'<div class="charts">{inside}</div>')

    def write(self, path: Path) -> None:
        """Write the page, all at once."""
        self._close()
        write_text(
            path,
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>"
            f"<body><main>{''.join(self._parts)}</main></body></html>\n",
        )

    def _close(self) -> None:
        if self._open:
            self._parts.append("</section>")
            self._open = False


def _css(colour: tuple[float, float, float]) -> str:
    return f"rgb({','.join(str(round(c * 255)) for c in colour)})"
