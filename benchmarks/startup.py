"""How long the command line takes to say what it can, and what it loads for it.

python benchmarks/startup.py [--rounds 7] [--out benchmarks/results/startup.json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

BAR_S = 0.35
HEAVY = ("torch", "monai", "napari", "SimpleITK", "scipy", "skimage", "pydicom")
_LOADED = (
    "import json, sys\n"
    "try:\n    {}\n"
    "except SystemExit:\n    pass\n"
    "print('\\n' + json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
)
_HELP = (
    "sys.argv = ['homolog', '--help']; from homolog.cli.__main__ import main; main()"
)
_PLUGIN = "import homolog.gui"
_PLAIN = "import click"


def processor_seconds(*words: str) -> float:
    """Of one command in a process of its own."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return spent() - before


def loaded(call: str) -> list[str]:
    """Those of the heavy libraries that a process has loaded after a call."""
    told = subprocess.run(
        [sys.executable, "-c", _LOADED.format(call)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    names = set(json.loads(told.stdout.splitlines()[-1]))
    return [name for name in HEAVY if name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    commands = {
        "python_with_click_s": ("-c", _PLAIN),
        "help_s": ("-m", "homolog.cli", "--help"),
        "plugin_s": ("-c", _PLUGIN),
    }
    best = {
        name: min(processor_seconds(*words) for _ in range(options.rounds))
        for name, words in commands.items()
    }
    report: dict[str, Any] = {
        **{name: round(value, 4) for name, value in best.items()},
        "loaded_by_help": loaded(_HELP), "loaded_by_plugin": loaded(_PLUGIN),
        "bar_s": BAR_S, "rounds": options.rounds, "clock": "processor",
        "load": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
