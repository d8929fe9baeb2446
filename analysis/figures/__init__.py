"""The figures of runs. Each module draws one of them, and `registry.py` lists them by name."""
