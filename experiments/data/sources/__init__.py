"""One file for each data set of `experiments.config.data_sets`, behind the protocol in `contract.py`."""
