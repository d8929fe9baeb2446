"""The report: one page that holds the question, the runs, the figures, the fits and what is supported, twice.

`index.html` works from disk and asks nothing of the network; `report.md` says the same; both are made from one
`document.Report`. `write.py` writes them.
"""
