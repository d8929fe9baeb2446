"""The diffusion transformer, with one feed-forward slot in each block."""
