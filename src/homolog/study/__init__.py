"""Experiments made of jobs."""
