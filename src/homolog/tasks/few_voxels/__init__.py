"""Segmentation from a few painted voxels."""
