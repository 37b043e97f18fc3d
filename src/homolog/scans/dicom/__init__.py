"""DICOM: files, what they hold, which of them make a scan, and labels kept as such."""
