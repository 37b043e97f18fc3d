"""Image to image: one sequence from another, a full dose from a low one."""
