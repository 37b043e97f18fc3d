"""The napari face. This process never imports torch or MONAI."""
