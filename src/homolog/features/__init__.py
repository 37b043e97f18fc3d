"""Features of whole scans: made, kept, searched and shown in colours."""
