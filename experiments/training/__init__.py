"""Trains a run: the package holds the DeepSpeed engine, checkpoints, validation and the loop."""
