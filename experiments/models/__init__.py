"""One diffusion transformer with one feed-forward slot per block."""
