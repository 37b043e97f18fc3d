"""The detect task: boxes of findings or organs, in 2D and 3D."""
