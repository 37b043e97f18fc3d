"""``python -m homolog.cli`` is the command ``homolog``."""

from homolog.cli import main

main()
