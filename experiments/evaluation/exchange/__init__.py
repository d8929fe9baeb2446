"""Files that are exchanged with other tools: exported weights, images for GenEval and DSG, and their results."""
