"""Fits scaling laws with intervals, decides what the data identify, and measures the error on held-out largest runs."""
