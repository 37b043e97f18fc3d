"""The tab Explore: similarity under the mouse, pins, matches, colours."""
