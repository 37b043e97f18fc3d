"""From an exception to one sentence on standard error and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from typing import IO, cast

import click

from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.safe_text import VisibleStream, visible

DONE, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130


def exit_status(error: BaseException) -> int:
    """Print the sentence an error deserves; return the exit status of section 3."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return STOPPED
    if isinstance(error, click.ClickException):
        error.show(file=cast("IO[str]", VisibleStream(sys.stderr)))
        return UNUSABLE
    if isinstance(error, SystemExit):
        return int(error.code) if isinstance(error.code, int) else FAILED
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        return DONE
    expected = (
        UnusableInput,
        ConfigError,
        FileNotFoundError,
        NotADirectoryError,
        FileExistsError,
    )
    if os.environ.get("HOMOLOG_TRACEBACK"):
        sys.stderr.write(visible("".join(traceback.format_exception(error))))
    print(visible(f"homolog: {_sentence(error)}"), file=sys.stderr)
    if isinstance(error, expected):
        return UNUSABLE
    if not isinstance(error, JobError | OSError | ValueError | MemoryError):
        print("(set HOMOLOG_TRACEBACK=1 to see where)", file=sys.stderr)
    return FAILED


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    text = str(error).strip()
    return text if text else type(error).__name__
