"""Batches of views for training: planned, read ahead and made on the device."""
