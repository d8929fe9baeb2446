"""`ecdit report` writes one page with the question, the runs, the figures, the fits and what the data supports."""

from __future__ import annotations

from pathlib import Path

from ecdit_cli._console import print_json, print_paths
from ecdit_cli._loading import loaded
from ecdit_cli._options import FromProjects, Json, OutDirectory, PaperValues, Parameters, RunFolders, Smoothed
from ecdit_cli._progress import progress
from ecdit_cli.plot import output_folder, roots_of

DEFAULT_OUT = Path("out/report")


def report(
    runs: RunFolders,
    projects: FromProjects,
    out: OutDirectory = None,
    paper_values: PaperValues = False,
    parameters: Parameters = "activated",
    smoothed: Smoothed = False,
    as_json: Json = False,
) -> None:
    """Write the report of finished runs as a page of HTML and of Markdown. Default: all runs below out/.

    Writes index.html (one file, works from disk), report.md, runs.csv and figures/ to --out. Default: SWEEP/report for
    the folder of one sweep, else out/report.
    """
    from analysis.parameter_counts import find_count
    from analysis.report.write import write_report

    count, roots = find_count(parameters), roots_of(runs, projects)
    records = loaded(roots, projects)
    typed = [*map(str, roots), *(word for place in projects for word in ("--from", place))]
    folder = output_folder(out, runs, projects, "report", DEFAULT_OUT)
    with progress("the report") as show:
        paths = write_report(
            records,
            typed,
            folder,
            paper_values=paper_values,
            parameters=count,
            tell=show.part,
            smoothed=smoothed,
        )
    if as_json:
        print_json(
            {
                "num_runs": len(records.runs),
                "num_left_out": len(records.left_out),
                "files": [str(path) for path in paths],
            }
        )
    else:
        print_paths(paths)
