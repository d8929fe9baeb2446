"""Holds the command line of ecdit: one module for each command, and shared modules named `_...`."""
