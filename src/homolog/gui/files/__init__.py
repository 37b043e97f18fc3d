"""Scans in and out of napari: reader, writer, layers and their true geometry."""
