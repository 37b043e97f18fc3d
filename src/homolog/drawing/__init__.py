"""Pictures of scans and features, charts and HTML reports."""
