"""A network over a whole scan, window by window."""
