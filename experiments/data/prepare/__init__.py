"""Encodes a user's captioned images to shards of latents and text features; `ecdit data prepare` runs it."""
