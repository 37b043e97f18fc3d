"""What several tabs use: open scans, models, runs, rows of widgets."""
