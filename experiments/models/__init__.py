"""Builds the diffusion transformer, in which every block has one dense or routed feed-forward."""
