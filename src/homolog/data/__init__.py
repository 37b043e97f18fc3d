"""Scans in, crops out. Import the module you need; nothing is loaded here."""
