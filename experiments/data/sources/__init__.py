"""Provides the data sets of `config/data_sets.py`, one in each file, behind the protocol of `image_source.py`."""
