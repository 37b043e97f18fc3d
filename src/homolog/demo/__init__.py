"""The whole path on built-in data, with a report."""
