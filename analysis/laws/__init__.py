"""Scaling laws: their forms, fits with intervals, what the data identify, and the error of predicting the largest."""
