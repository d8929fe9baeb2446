"""Mixture-of-experts diffusion transformers: configuration, model, training and evaluation."""
