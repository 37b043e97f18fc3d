"""The tab Data: open scans, see whether they are sound, build a store."""
