"""Batches of views for training: planned, read ahead and made on the device."""

from homolog.feed.batches import Feed, feed_threads
from homolog.feed.cases import CaseRef
from homolog.feed.collate import Batch

__all__ = ["Batch", "CaseRef", "Feed", "feed_threads"]
