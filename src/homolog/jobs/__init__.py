"""What runs in a worker, one file a kind."""
