"""Write a report folder: `index.html`, `report.md`, `runs.csv`, and the figures with their numbers in `figures/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.escaping import for_csv
from analysis.laws.bootstrap import NUM_RESAMPLES
from analysis.load_records import MissingDataError, Records
from analysis.parameter_counts import ACTIVATED, Count
from analysis.report.content import content
from analysis.report.html import html_page
from analysis.report.markdown import FIGURES, markdown_page
from analysis.report.pictures import draw_all
from analysis.report.run_rows import columns_with_scores, run_rows
from analysis.run_table import run_table
from experiments.records.outputs import output_files, require_ours


def write_report(
    records: Records,
    roots: Sequence[str],
    folder: Path,
    num_resamples: int = NUM_RESAMPLES,
    paper_values: bool = False,
    parameters: Count = ACTIVATED,
    tell: Callable[[str], None] = lambda _: None,
    smoothed: bool = False,
) -> list[Path]:
    """Writes the report of `records` into `folder` and returns the files written, `index.html` first.

    `roots` are the folders on the command line that would load the same records; the report prints them in its
    commands. `tell` is called with a line of progress before each figure and each law. With `smoothed`, laws are fitted
    to the ends of smoothed curves. Raises `RecordError` when the runs cannot be compared, `MissingDataError` when none
    has a validation loss, `OutputError` when `folder` holds a file of the same name that `ecdit` did not write, and
    `StorageError` when a file cannot be written.
    """
    names = ("index.html", "report.md", "runs.csv")
    paths = [folder / name for name in names]
    require_ours(paths)  # Checked before the figures are drawn, because drawing them takes minutes.
    runs = run_table(records)
    if runs["val_loss"].isna().all():
        raise MissingDataError(
            "No run has a validation loss, which a report compares.",
            "What imported weights were measured for is drawn by: ecdit plot expert-classes RUNS, and by: ecdit plot "
            "specialization RUNS",
        )
    pictures = draw_all(records, runs, folder / FIGURES, roots, paper_values, parameters, tell, smoothed)
    rows = run_rows(records, runs)
    report = content(records, runs, rows, pictures, roots, num_resamples, parameters, tell, smoothed)
    columns = ["run", *(column.key for column in columns_with_scores(rows) if column.key in rows)]
    with output_files(paths) as (page, text, table):
        page.write_text(html_page(report), encoding="utf-8")
        text.write_text(markdown_page(report), encoding="utf-8")
        for_csv(rows[columns]).to_csv(table, index=False)
    return [*paths, *pictures.paths]
