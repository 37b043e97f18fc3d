"""One worker per run: a lock the operating system frees when its holder dies."""

from homolog.data.file_lock import FileLock as RunLock
from homolog.data.file_lock import is_locked

__all__ = ["RunLock", "is_locked"]
