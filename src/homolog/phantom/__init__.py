"""A synthetic patient: scans with known anatomy, for tests and the demo."""
