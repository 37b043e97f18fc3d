"""Pictures of scans and features, with numpy and scipy alone."""
