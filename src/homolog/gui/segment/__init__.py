"""The tab Segment: one scan or a batch, volumes, comparison."""
