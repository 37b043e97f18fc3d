"""Prepared scans on disk, read crop by crop."""
