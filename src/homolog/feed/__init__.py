"""Batches of views for training: planned, read ahead and made on the device."""

from homolog.feed.batches import Batch, CaseRef, Feed

__all__ = ["Batch", "CaseRef", "Feed"]
