"""All that passes from learning to use: model folders and encoders."""
