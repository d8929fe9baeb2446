"""What `ecdit bench` measures. Only that command imports this package."""
