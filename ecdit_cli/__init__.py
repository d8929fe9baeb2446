"""The command line of ecdit: one module for each command, and helpers of several commands in modules named `_...`."""
