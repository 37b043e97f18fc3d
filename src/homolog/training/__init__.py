"""Learning: one loop for every method and task."""
