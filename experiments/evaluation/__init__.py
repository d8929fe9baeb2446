"""Evaluates trained models: it samples and scores images, and measures the cost and the routing of inference."""
