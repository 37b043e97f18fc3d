"""``python -m homolog.cli`` is the command ``homolog``."""

from __future__ import annotations

from homolog.cli import main

main()
