"""Classes of whole scans."""
