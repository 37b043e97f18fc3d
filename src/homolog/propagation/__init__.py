"""Labels carried from labelled scans to others by matching what they show."""
