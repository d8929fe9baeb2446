"""Measures a trained model at inference: seconds, memory, and which tokens its experts process."""
