"""Exchanges files with other tools: exported weights, images for GenEval and DSG, and their results."""
