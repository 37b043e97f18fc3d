"""A second scan beside the canvas, with slices of its own."""
