"""Defines rectified flow (its path, loss and samplers) independently of the network."""
