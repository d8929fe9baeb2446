"""Writes a report: `index.html`, `report.md`, `runs.csv`, and the figures with their numbers in `figures/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.escaping import for_csv
from analysis.load import Records, load_records
from analysis.parameters import ACTIVATED, Count
from analysis.report.content import content
from analysis.report.html import html_page
from analysis.report.laws import NUM_RESAMPLES
from analysis.report.markdown import FIGURES, markdown_page
from analysis.report.pictures import draw_all
from analysis.report.run_rows import columns_with_scores, run_rows
from analysis.tables import run_table
from experiments.records.storage import storage_errors


def write_report(roots: Sequence[Path], folder: Path) -> list[Path]:
    """The report of the finished runs at or below `roots`, into `folder`; the files, the page first.

    A `RecordError` when there are none or they cannot be compared, a `StorageError` when `folder` cannot be written.
    """
    return write_report_of(load_records(roots), [str(root) for root in roots], folder)


def write_report_of(
    records: Records,
    roots: Sequence[str],
    folder: Path,
    num_resamples: int = NUM_RESAMPLES,
    paper_values: bool = False,
    parameters: Count = ACTIVATED,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """The same of records that are loaded; `roots` is what to type to load them again, `tell` hears what is done."""
    runs = run_table(records)
    pictures = draw_all(records, runs, folder / FIGURES, roots, paper_values, parameters, tell)
    report = content(records, runs, pictures, roots, num_resamples, parameters, tell)
    rows = run_rows(records, runs)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        pages = {"index.html": html_page(report), "report.md": markdown_page(report)}
        for name, page in pages.items():
            (folder / name).write_text(page, encoding="utf-8")
        columns = ["run", *(column.key for column in columns_with_scores(rows) if column.key in rows)]
        for_csv(rows[columns]).to_csv(folder / "runs.csv", index=False)
    return [*(folder / name for name in (*pages, "runs.csv")), *pictures.paths]
