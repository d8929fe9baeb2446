"""Procedural captioned scenes, and the batches made of them."""
