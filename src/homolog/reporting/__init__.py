"""What an encoder, or a model made of it, has learnt: figures and pictures of it."""
