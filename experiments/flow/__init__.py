"""Rectified flow: the path, the loss, and samplers, independent of the network."""
