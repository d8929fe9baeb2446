"""Measures the speeds and costs that `ecdit bench` prints. Only that command imports this package."""
