"""Learning a task from labels."""
