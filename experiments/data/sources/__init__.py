"""Provides the data sets of `experiments.config.data_sets`, one in each file, behind the protocol in `contract.py`."""
