"""Evaluation of trained models: samples and their scores, previews during training, and the cost of inference."""
