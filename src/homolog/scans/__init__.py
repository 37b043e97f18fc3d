"""A file and the volume it holds: reading, writing, headers, names and points."""
