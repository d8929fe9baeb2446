"""Measures the speeds and costs that `ecdit bench` prints. Only that command imports this package.

It may import whatever it measures, also the executor and the planner of `sweeps`.
"""
