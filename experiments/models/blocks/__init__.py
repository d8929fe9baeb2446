"""Defines the blocks of the transformer, one file each, behind the contract of `block.py`."""
