"""The figures: one module for each, listed by name in `registry.py`."""
