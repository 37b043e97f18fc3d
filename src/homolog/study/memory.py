"""Free and total main memory, for what measures and describes this machine."""

from homolog.memory import available_memory

__all__ = ["available_memory"]
