"""What frozen features know of labels, before any fine-tuning."""
