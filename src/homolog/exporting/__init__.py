"""Trained networks in the forms other programs read: files and folders, whole."""
