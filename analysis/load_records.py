"""Loads run folders into the frames `runs`, `steps` and `evals`, with a list of everything that was left out.

Only finished runs enter the frames. These are left out, counted and listed in `Records.left_out`: a run that is
unfinished, failed, damaged, a copy of another or without a validation loss at its end, a run of a newer version of
ecdit, a run of an older version that trained on another balance loss than the others, the runs on which arms were
tuned (unless there are no others), a line that was cut, and a row with a number that is not finite. `comparable.py`
decides whether the runs may be compared, and `arms.py` which of them form one arm.

A run that diverged is left out of the frames and of every mean, but it stays visible: `Records.diverged` has frames of
these runs for themselves, and `diverged_runs.py` names their arms.

Losses of runs with different objectives are on one measure (`shared_measure.py`).
FLOPs of training are the executed ones where a run recorded them (`executed_flops.py`).

`runs` has a row per run, with the settings as dotted columns (`routing.name`), `steps` a row per `StepRow` and `evals`
a row per `EvalRow`. All are joined by `run`, the folder as text. In `steps`, which may have millions of rows, it is
categorical, and the rows of a run are in the order of `images_seen`. `read_routing` reads `RoutingRow`s on demand,
because no table needs them and each run has a file of its own for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from analysis.executed_flops import as_executed
from analysis.found_runs import BEGAN_FROM, IMPORTED, DivergedRun, FinishedRun, LeftOutRecord
from analysis.read_rows import ReadFile, RowTable, as_table, read_file
from analysis.read_runs import Found, read_runs
from analysis.shared_measure import has_another_loss, measure_note, on_shared_measure
from analysis.wandb_runs import fetch_project
from experiments.config.stored import unstored_defaults
from experiments.errors import EcditError, RecordError
from experiments.records.record_types import BALANCE_LOSS, RoutingRow
from experiments.records.run_folder import RunDir, Skipped, find_runs

AnyRun = TypeVar("AnyRun", FinishedRun, DivergedRun)
Made = TypeVar("Made")

FROM_SCRATCH = "scratch"
"""The word for runs without a parent in a column that says what the parent was."""
TRAINED_HERE = "trained here"
"""The words for runs that hold no imported weights, in the column that says which they are."""


class MissingDataError(EcditError):
    """The runs do not hold what a figure or a table needs."""


@dataclass(frozen=True)
class Records:
    """The frames of the finished runs, and what was left out of them.

    `diverged` has the frames of the runs that diverged, up to their last finite row, or is None where none did. There
    `runs` has a column more, `diverged_at_images`.
    """

    runs: pd.DataFrame
    steps: pd.DataFrame
    evals: pd.DataFrame
    left_out: tuple[LeftOutRecord, ...]
    diverged: Records | None = None
    _made: dict[Callable[..., Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, make: Callable[[Records], Made]) -> Made:
        """Returns what `make` makes of these records. It is made once, however many tables and figures ask for it."""
        if make not in self._made:
            self._made[make] = make(self)
        made: Made = self._made[make]
        return made


def load_records(
    roots: Sequence[Path],
    projects: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
    on_runs: Callable[[int, int], None] = lambda done, total: None,
) -> Records:
    """Loads the finished runs at or below `roots` and in the W&B `projects` (`wandb:ENTITY/PROJECT`), each once.

    A run that exists in both places is read from its folder. `tell` is called with a line for every run and row that is
    left out, which gives the reason, and `on_runs` with how many of how many runs have been read. Raises `RecordError`
    when a root does not exist or when no finished run is found, and `WandbError` for a project that cannot be read.
    """
    fetched = [fetch_project(place) for place in projects]
    skipped: Skipped = []
    dirs = _existing_runs(roots, skipped) if roots else []
    dirs += find_runs(*(folder for each in fetched for folder in each.folders), skipped=skipped)
    left_out = [LeftOutRecord(*entry) for entry in (*skipped, *(entry for each in fetched for entry in each.left_out))]
    if not dirs:
        raise RecordError(f"No runs of ecdit in {', '.join(projects)} ({left_out[0]}).", "Name another project.")
    found, *read = read_runs(dirs, tell, on_runs)
    tables = _on_shared_measure(found, *read)
    left_out += [
        each.left_out if isinstance(each, DivergedRun) else each for each in found if not isinstance(each, FinishedRun)
    ]
    finished = [each for each in found if isinstance(each, FinishedRun)]
    if not finished:
        reasons = "; ".join(map(str, left_out[:3])) + ("; ..." if len(left_out) > 3 else "")
        hint = "Re-run the command of an unfinished run to continue it."
        raise RecordError(f"None of the {len(dirs)} runs is finished ({reasons}).", hint)
    finished, proxies = _without_proxies(finished)
    left_out += proxies
    incomplete = _without_final_loss(finished, *(table.frame for table in tables))
    unusable = {each.run for each in incomplete}
    of_one_loss, of_another = _of_one_loss([each for each in finished if each.run not in unusable])
    kept, copies = _without_copies(of_one_loss)
    if not kept:
        raise RecordError(f"No finished run is complete ({incomplete[0]}).", "Train it again in a new folder.")
    cells = [each for each in found if isinstance(each, DivergedRun) and (each.row["tunes"] is None or not proxies)]
    cells, _ = _without_copies(cells)
    defaults = _defaults_of([*(each.row for each in kept), *(each.row for each in cells)])
    runs = _with_defaults(pd.DataFrame([each.row for each in kept]), defaults)
    steps, evals = (rows_of(runs, table.frame) for table in tables)
    runs, steps = as_executed(runs, steps)
    copied = {each.run for each in (*copies, *of_another)}
    rows_left_out = [LeftOutRecord(*entry) for table in tables for entry in table.left_out if entry[0] not in copied]
    left_out += [*of_another, *copies, *rows_left_out, *incomplete]
    if left_out:
        tell(f"Left out: {len(left_out)}; used: {len(runs)} runs.")
    for each in left_out:
        tell(f"  {each}")
    if note := measure_note(runs):
        tell(note)
    diverged = _diverged_records(cells, defaults, *tables)
    return Records(runs, steps, evals, tuple(left_out), diverged)


def _on_shared_measure(found: Found, steps: RowTable, evals: RowTable) -> tuple[RowTable, RowTable]:
    """Puts the losses of the runs on the measure that their objectives share."""
    others = {each.run for each in found if not isinstance(each, LeftOutRecord) and has_another_loss(each.row)}
    frames = on_shared_measure(steps.frame, evals.frame, others)
    return RowTable(frames[0], steps.left_out), RowTable(frames[1], evals.left_out)


def _defaults_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the defaults of those settings that some run stores, or was tuned in, and others need not store.

    Finished runs and those that diverged must have the same columns, so that `arms.py` finds their common arms.
    """
    named = {name for row in rows for name in row} | {row["tuned_setting"] for row in rows}
    defaults = {**unstored_defaults(), BEGAN_FROM: FROM_SCRATCH, IMPORTED: TRAINED_HERE}
    return {name: default for name, default in defaults.items() if name in named}


def _with_defaults(runs: pd.DataFrame, defaults: Mapping[str, Any]) -> pd.DataFrame:
    """Fills in the settings that only those runs store whose value is not the default."""
    missing = {name: default for name, default in defaults.items() if name not in runs}
    return runs.assign(**missing).fillna(dict(defaults))


def read_routing(records: Records, at_end: bool = False) -> tuple[pd.DataFrame, list[LeftOutRecord]]:
    """Reads the rows of `routing.jsonl` of the runs in `records`, and lists what could not be used.

    With `at_end` only the rows at the end of each run are kept, since all of many runs would take gigabytes.
    """
    runs = list(records.runs["run"])
    ends = records.runs["images_seen"] if at_end else [None] * len(runs)
    table = as_table(runs, [_routing_at(end, run) for end, run in zip(ends, runs, strict=True)], RoutingRow)
    return table.frame.assign(run=table.frame["run"].astype("str")), [LeftOutRecord(*entry) for entry in table.left_out]


def _routing_at(images: int | None, run: str) -> ReadFile:
    """Returns the rows of routing of one run after so many images, or all of them for None."""
    file = read_file(RunDir(Path(run)).routing, RoutingRow)
    if images is None:
        return file
    is_there = file.columns["images_seen"] == images
    return ReadFile({name: values[is_there] for name, values in file.columns.items()}, file.left_out)


def _existing_runs(roots: Sequence[Path], skipped: Skipped) -> list[RunDir]:
    for root in roots:
        if not root.is_dir():
            raise RecordError(f"{root} is not a folder.", "Name the folder of a run or of a sweep.")
    dirs = list(find_runs(*roots, skipped=skipped))
    if not dirs:
        where = ", ".join(map(str, roots)) + (f" ({LeftOutRecord(*skipped[0])})" if skipped else "")
        raise RecordError(f"No runs at or below {where}.", "Make some with: ecdit sweep quickstart --out out/demo")
    return dirs


def _of_one_loss(finished: list[FinishedRun]) -> tuple[list[FinishedRun], list[LeftOutRecord]]:
    """Leaves out the runs whose balance loss is the mean over layers, where another run's is today's sum.

    Both have the same config ids, so that they would stand in one arm although they trained on different losses.
    """
    of_today = next((each.run for each in finished if each.balance_loss == BALANCE_LOSS), None)
    kept, left_out = [], []
    for each in finished:
        if of_today is None or each.balance_loss in (None, BALANCE_LOSS):
            kept.append(each)
        else:
            reason = f"an earlier version trained it with the {each.balance_loss} of the balance loss"
            left_out.append(LeftOutRecord(each.run, f"{reason}, of which {of_today} has the {BALANCE_LOSS}"))
    return kept, left_out


def _without_proxies(finished: list[FinishedRun]) -> tuple[list[FinishedRun], list[LeftOutRecord]]:
    """Leaves out the runs on which settings were tuned, with one line for a folder, unless there are no others."""
    kept = [each for each in finished if each.row["tunes"] is None]
    if not kept:
        return finished, []
    folders: dict[tuple[str, str], int] = {}
    for each in finished:
        if each.row["tunes"] is not None:
            place = (str(Path(each.run).parent), each.row["tunes"])
            folders[place] = folders.get(place, 0) + 1
    return kept, [
        LeftOutRecord(folder, f"its {count} runs tuned the arms of {sweep}: name this folder alone to compare them")
        for (folder, sweep), count in folders.items()
    ]


def _without_copies(found: list[AnyRun]) -> tuple[list[AnyRun], list[LeftOutRecord]]:
    """Keeps each run once, also where it is in W&B too, and each config and seed once: a copy is not another seed.

    Dense models that differ only in where their sparse layers would be are copies, too, and imports of other weights
    are not.
    """
    first: dict[str, str] = {}
    kept, copies = [], []
    for each in found:
        same_run = first.setdefault(each.mirror_id, each.run)
        same_settings = first.setdefault(each.settings, each.run)
        if same_run != each.run:
            copies.append(LeftOutRecord(each.run, f"it is the same run as {same_run}"))
        elif same_settings != each.run:
            copies.append(LeftOutRecord(each.run, f"it has the same settings and seed as {same_settings}"))
        else:
            kept.append(each)
    return kept, copies


def _diverged_records(
    found: list[DivergedRun], defaults: Mapping[str, Any], steps: RowTable, evals: RowTable
) -> Records | None:
    if not found:
        return None
    runs = _with_defaults(pd.DataFrame([each.row for each in found]), defaults)
    runs, kept = as_executed(runs, rows_of(runs, steps.frame))
    return Records(runs, kept, rows_of(runs, evals.frame), ())


def _without_final_loss(finished: list[FinishedRun], steps: pd.DataFrame, evals: pd.DataFrame) -> list[LeftOutRecord]:
    """Returns the runs without a validation at their end: an earlier loss must not pass for the final one.

    A merged run took no steps of its own (`ecdit merge`), and imported weights have neither steps nor a loss.
    """
    losses = evals[(evals["metric"] == "val_loss") & (evals["weights"] == "raw")]
    last = losses.groupby("run")["images_seen"].max().to_dict()
    trained = set(steps["run"].unique())
    left_out = []
    for run, row, *_ in finished:
        if row["imported"] is not None:
            continue
        if run not in trained and row["parts"] is None:
            left_out.append(LeftOutRecord(run, "no row in steps.jsonl"))
        elif last.get(run) != row["images_seen"]:
            left_out.append(LeftOutRecord(run, f"no validation loss at {row['images_seen']:,} images, its end"))
    return left_out


def rows_of(runs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Keeps the rows that belong to `runs`. It tests each run once and not each row, as texts are slow to compare."""
    run_of_row, names = pd.factorize(rows["run"])
    is_kept = names.isin(runs["run"])
    return rows if is_kept.all() else rows[is_kept[run_of_row]].reset_index(drop=True)
