"""A tree of files becomes cases: which scan has which label, and whose it is."""
