"""Files that may tell of patients are for their owner alone.

The command line and worker processes set their umask: whatever they write, libraries
included, is 0600 in folders of 0700. The window shares its process with napari, whose
umask is not ours to change: what is written there names its modes. Folders and files
that exist keep theirs. ``HOMOLOG_UMASK=007`` shares with a group (in folders of that
group, setgid ones for instance), ``022`` with everybody.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from homolog.errors import UnusableInput

_VARIABLE = "HOMOLOG_UMASK"
_PRIVATE = 0o077


def wanted_umask() -> int:
    """What others may not do with what we write.

    Raises:
        UnusableInput: ``HOMOLOG_UMASK`` is no umask.
    """
    told = os.environ.get(_VARIABLE, "").strip()
    if not told:
        return _PRIVATE
    try:
        mask = int(told, 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= _PRIVATE:
        raise UnusableInput(
            f"{_VARIABLE} must be an octal number from 000 to 077, as 007 to share "
            f"with your group, got {told!r}."
        )
    return mask


def keep_private() -> None:
    """Set this process' umask; a stricter one stays where no other is asked for."""
    mask = wanted_umask()
    before = os.umask(mask)
    if _VARIABLE not in os.environ:
        os.umask(before | mask)


def file_mode() -> int:
    """Mode of a file that is new."""
    return 0o666 & ~wanted_umask()


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; what is there keeps its mode.

    Raises:
        FileExistsError: It is a file.
        OSError: It cannot be made.
    """
    missing = []
    for folder in (path, *path.parents):
        if folder.is_dir():
            break
        missing.append(folder)
    for folder in reversed(missing):
        folder.mkdir(mode=0o777 & ~wanted_umask(), exist_ok=True)


def make_private(fresh: Path, place: Path) -> None:
    """Give a new file, not yet in its place, the mode it is to have.

    Args:
        fresh: The file; becomes as private as the file it is to replace, or as ours
            are where there is none.
        place: Where it goes.
    """
    with contextlib.suppress(OSError):  # file systems without modes
        try:
            mode = stat.S_IMODE(place.stat().st_mode)
        except FileNotFoundError:
            mode = file_mode()
        fresh.chmod(mode)


def create(path: Path) -> None:
    """Make an empty file of our mode where there is none."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file_mode()))
