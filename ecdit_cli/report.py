"""`ecdit report`: one page with the question, the runs, the figures, the fits and what is supported."""

from __future__ import annotations

from pathlib import Path

from ecdit_cli._console import print_json
from ecdit_cli._options import Json, OutDirectory, RunFolders
from ecdit_cli.plot import DEFAULT_RUNS, say_left_out

DEFAULT_OUT = Path("out/report")


def report(runs: RunFolders, out: OutDirectory = None, as_json: Json = False) -> None:
    """Write the report of finished runs as a page of HTML and of Markdown. Default: all runs below out/.

    Writes index.html (one file, works from disk), report.md, runs.csv and figures/ to --out (default: out/report).
    """
    from analysis.load import load_records
    from analysis.report.write import write_report_of

    roots = runs or [DEFAULT_RUNS]
    records = load_records(roots)
    say_left_out(records)
    paths = write_report_of(records, [str(root) for root in roots], out or DEFAULT_OUT)
    if as_json:
        print_json(
            {
                "num_runs": len(records.runs),
                "num_left_out": len(records.left_out),
                "files": [str(path) for path in paths],
            }
        )
    else:
        print(*paths, sep="\n")
