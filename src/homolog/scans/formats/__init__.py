"""Formats of single programs: what a file of theirs is, and what it holds."""
