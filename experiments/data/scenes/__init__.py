"""Procedural scenes, free of torch: what is where, in which words, and in which pixels."""
