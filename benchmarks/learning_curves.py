"""One figure of learning curves: a panel for each data set, one line for each arm.

Reads ``comparison.json`` of `homolog compare`, or what ``label_fractions.py`` keeps of
it; dots are means over test patients and seeds, whiskers 95 % intervals over test
patients, grey is what the others are compared with.

    python benchmarks/learning_curves.py LA=la.json CHAOS=chaos.json --out curves.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from homolog.comparing.report import curves_figure
from homolog.errors import UnusableInput
from homolog.json_files import read_object
from homolog.writing import write_text

# What the drawing reads of a summary.
NEEDED = {"arms": list, "table": list, "metric": str}


def summaries(words: list[str]) -> dict[str, dict[str, Any]]:
    """Title -> summary; of ``TITLE=FILE``, or of ``FILE`` alone its name."""
    found = {}
    for word in words:
        title, _, path = word.rpartition("=")
        found[title or Path(path).stem.replace("_", " ")] = read_object(
            Path(path), NEEDED
        )
    return found


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tables", nargs="+", metavar="[TITLE=]FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg")
    parser.add_argument("--width", type=int, default=440, help="pixels of a panel")
    parser.add_argument("--height", type=int, default=280, help="pixels of a panel")
    arguments = parser.parse_args()
    try:
        read = summaries(arguments.tables)
    except (UnusableInput, OSError) as error:
        parser.error(str(error))
    drawing = curves_figure(read, arguments.width, arguments.height)
    if not drawing:
        parser.error(f"none of {len(read)} tables has a result yet.")
    write_text(arguments.out, drawing + "\n")


if __name__ == "__main__":
    main()
