"""Landmarks carried from one scan to another."""
