"""Computes the metrics of sampled images. Each metric has a module with the network or judge that it needs."""
