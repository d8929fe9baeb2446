"""Rectified flow: the path, the loss, and samplers. Knows no network."""
