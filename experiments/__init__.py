"""Defines, trains and evaluates mixture-of-experts diffusion transformers, and records their runs."""
