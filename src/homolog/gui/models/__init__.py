"""The tab Models: cards, import, export."""
