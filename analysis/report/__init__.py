"""Writes the report: a page with the question, the runs, the figures, the fitted laws and the verdicts, in two formats.

`index.html` works from disk and loads nothing from the network; `report.md` has the same content. Both are rendered
from one `document.Report`, and `write.py` writes them.
"""
