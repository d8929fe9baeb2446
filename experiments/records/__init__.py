"""Writes and reads the records of a run, and alone names its files. This package does not import torch."""
