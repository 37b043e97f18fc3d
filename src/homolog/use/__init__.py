"""A trained model at work: predictions and scores."""
