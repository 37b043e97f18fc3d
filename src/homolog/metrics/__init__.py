"""Metrics: thin over MONAI and scikit-learn."""
