"""Tells how to reproduce each number of a report: files, commands, code, library versions and hardware of every run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.columns import Column
from analysis.report.document import Block, Bullets, Commands, Paragraph, table
from analysis.report.run_rows import whole

NOT_RECORDED = "not recorded"
ORIGINS = (
    "Losses: rows of evals.jsonl with metric val_loss (raw or EMA weights), the last one of each run.",
    "Parameters and FLOPs: run.json, counted from the settings; training FLOPs are images_seen of status.json times "
    "train_flops_per_image, or the last executed_flops of steps.jsonl where a run has them.",
    "Seconds and images/s: steps.jsonl, the last seconds and the median of images_per_second.",
    "Scores and inference times: rows of evals.jsonl that ecdit evaluate added, the last under each condition.",
    "Figures: the CSV beside each holds the plotted numbers.",
)
COMMANDS_NOTE = (
    "A command that is run again resumes its run. All settings of a run are in its run.json; those of a run of a "
    "sweep also in configs/ of the sweep, whose plan.json names every run. A command with --branch-from needs the run "
    "that it names; without that option it trains the same numbers alone."
)
COLUMNS = (
    Column("name", "Run"),
    Column("typed", "Command"),
    Column("config_id", "Config id"),
    Column("sweep", "Sweep"),
    Column("started", "Started (UTC)"),
    Column("commit", "Commit"),
    Column("device", "Hardware"),
    Column("world", "Processes", whole),
    Column("num_threads", "Threads", whole),
    Column("precision", "Precision"),
)


def reproduction_blocks(rows: pd.DataFrame, roots: Sequence[str]) -> list[Block]:
    """Returns the section on reproduction, made from the run rows (`run_rows`) and the folders of the command line."""
    folders = shlex.join(roots)
    kept = ["command", "git_commit", "created_at", *(column.key for column in COLUMNS if column.key in rows)]
    made = [
        {
            **row,
            "typed": shlex.join(row["command"]),
            "commit": _commit(row["git_commit"]),
            "started": str(row["created_at"])[:16].replace("T", " "),
        }
        for row in rows[kept].to_dict("records")
    ]
    return [
        Paragraph("The report, its figures and its comparison are made from the folders of the runs by:"),
        Commands([f"ecdit report {folders}", f"ecdit plot all {folders}", f"ecdit compare-routing {folders}"]),
        Bullets(ORIGINS, "Where the numbers are from"),
        Bullets(_counted(rows["git_commit"].fillna(NOT_RECORDED), "commit "), "Code"),
        Bullets(_counted(rows["versions"], ""), "Versions"),
        Bullets(_counted(rows["device"], ""), "Hardware"),
        table("commands", "The command of every run", COLUMNS, made, COMMANDS_NOTE),
    ]


def _commit(commit: Any) -> str:
    """Returns ten digits of the commit, with its suffix (such as `-dirty`) where the working tree had changes."""
    if commit is None or commit != commit:
        return NOT_RECORDED
    digits, mark, state = str(commit).partition("-")
    return digits[:10] + mark + state


def _counted(values: pd.Series[Any], prefix: str) -> list[str]:
    """Returns a line for each different value, with the number of runs that have it."""
    counts = values.value_counts(sort=False)
    return [f"{prefix}{value} ({count:,} run{'' if count == 1 else 's'})" for value, count in counts.items()]
