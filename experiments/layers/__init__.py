"""Computes the layers of a block: attention, norms, stacked experts with dispatch and combine, and Triton kernels."""
