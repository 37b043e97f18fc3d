"""Batches of views for training: planned, read ahead and made on the device."""

from homolog.feed.batches import CaseRef, Feed
from homolog.feed.collate import Batch

__all__ = ["Batch", "CaseRef", "Feed"]
