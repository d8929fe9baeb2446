"""Makes batches of procedural captioned scenes or of prepared latents, and prepares the latents of real images."""
