"""`ecdit plot` draws figures from the records of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.columns import Column
from ecdit_cli._console import print_json, print_paths, print_rows, say
from ecdit_cli._loading import loaded
from ecdit_cli._options import FromProjects, Json, OutDirectory, PaperValues, Parameters, RunFolders, Smoothed
from ecdit_cli._progress import progress

if TYPE_CHECKING:
    from analysis.figures.registry import FigureEntry
    from analysis.style import Drawing

ALL = "all"
DEFAULT_RUNS = Path("out")
DEFAULT_OUT = Path("out/figures")

LIST_COLUMNS = (
    Column("name", "figure"),
    Column("aliases", "or", ", ".join),
    Column("description", "shows", prose=True),
)


def plot(
    figure: Annotated[
        str,
        typer.Argument(
            metavar="FIGURE|all", default_factory=str, show_default=False, help="A name from --list, or all of them."
        ),
    ],
    runs: RunFolders,
    projects: FromProjects,
    out: OutDirectory = None,
    paper_values: PaperValues = False,
    parameters: Parameters = "activated",
    smoothed: Smoothed = False,
    list_figures: Annotated[bool, typer.Option("--list", help="List every figure, and what it shows.")] = False,
    as_json: Json = False,
) -> None:
    """Draw figures of finished runs as PNG, SVG and CSV. Default: all runs below out/.

    They are written to --out. Default: SWEEP/figures for the folder of one sweep, else out/figures.
    """
    from analysis.parameter_counts import find_count
    from analysis.run_table import run_table

    if list_figures:
        rows = _list_rows()
        print_rows(rows, [column for column in LIST_COLUMNS if any(column.key in row for row in rows)], as_json)
        return
    wanted, count = _wanted(figure), find_count(parameters)
    records = loaded(roots_of(runs, projects), projects)
    table = run_table(records)

    def draw(entry: FigureEntry) -> Drawing:
        return entry.drawing(records, table, paper_values, count, smoothed)

    folder = output_folder(out, runs, projects, "figures", DEFAULT_OUT)
    drawn = _draw(wanted, draw, folder, skip_impossible=figure == ALL)
    if paper_values:
        _say_not_printed(drawn)
    if as_json:
        print_json(drawn)
    else:
        for entry in drawn:
            print_paths(entry["files"])


def roots_of(runs: list[Path], projects: list[str]) -> list[Path]:
    """Returns the folders to read, `out/` where nothing is named."""
    return runs if runs or projects else [DEFAULT_RUNS]


def output_folder(out: Path | None, runs: list[Path], projects: list[str], name: str, otherwise: Path) -> Path:
    """Returns `out`, or the folder `name` of the sweep where RUNS is the folder of one sweep, or `otherwise`."""
    from sweeps.folder import SweepFolder

    if out is not None:
        return out
    is_sweep = len(runs) == 1 and not projects and SweepFolder(runs[0]).plan_json.is_file()
    return runs[0] / name if is_sweep else otherwise


def _wanted(figure: str) -> list[FigureEntry]:
    from analysis.figures.registry import FIGURES, find_figure
    from experiments.errors import EcditError

    if not figure:
        names = ", ".join(FIGURES)
        raise EcditError("No figure is named.", f"Choose from: {ALL}, {names}; --list says what they show.")
    return list(FIGURES.values()) if figure == ALL else [find_figure(figure)]


def _draw(
    wanted: list[FigureEntry], draw: Callable[[FigureEntry], Drawing], out: Path, skip_impossible: bool
) -> list[dict[str, Any]]:
    """Draws and writes each figure.

    A figure that the runs do not allow is reported, and raises its error when it is the only one.
    """
    from analysis.load_records import MissingDataError
    from analysis.style import write_drawing
    from experiments.errors import RecordError

    drawn: list[dict[str, Any]] = []
    reasons: list[str] = []
    with progress("drawing", "figures") as show:
        for number, entry in enumerate(wanted):
            show.rename(f"drawing {entry.name}")
            show(number, len(wanted))
            try:
                drawing = draw(entry)
            except (MissingDataError, RecordError) as error:  # RecordError: a file is damaged, or conditions differ
                if not skip_impossible:
                    raise
                reasons.append(f"{entry.name} was not drawn: {error}")
                continue
            paths = write_drawing(drawing, out, entry.name)
            drawn.append({"figure": entry.name, "files": [str(path) for path in paths]})
    for reason in reasons:
        say(reason)
    if not drawn:
        raise MissingDataError(
            "None of the figures can be drawn from these runs.", "The lines above name the reason for each figure."
        )
    return drawn


def _say_not_printed(drawn: list[dict[str, Any]]) -> None:
    """Reports which of the drawn figures have no published numbers beside them."""
    from analysis.figures.registry import find_figure

    without = [name for name in (entry["figure"] for entry in drawn) if find_figure(name).draw_beside_paper is None]
    if without:
        say(f"No published numbers to show in: {', '.join(without)}.")


def _list_rows() -> list[dict[str, Any]]:
    from analysis.figures.registry import FIGURES

    rows = [
        {"name": entry.name, "description": entry.description, "aliases": entry.aliases} for entry in FIGURES.values()
    ]
    return [{key: value for key, value in row.items() if value} for row in rows]
