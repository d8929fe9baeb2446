"""Training: the DeepSpeed engine, checkpoints, validation and the loop."""
