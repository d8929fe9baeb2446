"""Reads a committed table of `ecdit export` as the records of its runs, for the project's own analysis.

Such a table has the last row of every run's `steps.jsonl` and `evals.jsonl` and no curves: what needs those cannot be
made from it. Columns with paths, hosts and commands are not committed, so that a run is known by its name.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from analysis.claims import PairedDifference, claims
from analysis.found_runs import BEGAN_FROM
from analysis.load_records import FROM_SCRATCH, Records
from analysis.run_table import run_table
from analysis.shared_measure import has_another_loss, on_shared_measure
from experiments.config.stored import unstored_defaults

FOLDER = Path(__file__).parent
LEFT_OUT = ("run", "state", "images_total", "reason", "command", "damaged", "train.init_from", "train.init_fingerprint")
"""The columns of an export that describe no run of an analysis, or hold paths and commands."""
ABSENT = {
    "parent": None, "trunk_images": None, "flops_before": 0.0, "images_before": 0, "parts": None, "imported": None,
    "tunes": None, "tuned_setting": None, "tuned_short": None, "retry_of": None,
}  # fmt: skip
"""The facts of a run that an older table lacks, as they are where there is nothing to say."""


@cache
def exported(file: str) -> pd.DataFrame:
    """Returns the rows of a committed table, one for each run."""
    return pd.read_csv(FOLDER / file)


@cache
def records(file: str) -> Records:
    """Returns the runs of a committed table, each with the last row of its steps and of every metric."""
    table = exported(file)
    names = table["name"].rename("run")
    own = [name for name in table if not name.startswith(("evals.", "steps.")) and name not in LEFT_OUT]
    facts = {name: value for name, value in ABSENT.items() if name not in table}
    runs = pd.concat([names, table[own]], axis=1).assign(**facts)
    runs[BEGAN_FROM] = runs["parent"].map(lambda parent: FROM_SCRATCH if pd.isna(parent) else "trained weights")
    runs = runs.fillna({name: default for name, default in unstored_defaults().items() if name in runs})
    steps = pd.concat([names, *(table[name].rename(name[6:]) for name in table if name.startswith("steps."))], axis=1)
    rows = [
        pd.DataFrame(
            {
                "run": names, "images_seen": table["images_seen"], "metric": metric.removeprefix("ema."),
                "weights": "ema" if metric.startswith("ema.") else "raw", "value": table[f"evals.{metric}"],
                "num_samples": table["eval.images"], "seed": 0, "settings": None,
            }
        )
        for metric in (name[6:] for name in table if name.startswith("evals.") and "@" not in name)
    ]  # fmt: skip
    others = {row["run"] for row in runs.to_dict("records") if has_another_loss(row)}
    steps, evals = on_shared_measure(steps, pd.concat(rows, ignore_index=True).dropna(subset="value"), others)
    return Records(runs, steps, evals, ())


@cache
def arms(file: str) -> pd.DataFrame:
    """Returns the run table of a committed table, with setups and arms."""
    return run_table(records(file))


@cache
def differences(file: str) -> list[PairedDifference]:
    """Returns every difference that `ecdit compare-routing` tests among the runs of a committed table."""
    return claims(arms(file))


def printed_table(page: str) -> pd.DataFrame:
    """Returns the first table of a committed page of `ecdit compare-routing`, as texts, with a row for each arm."""
    lines = (FOLDER / page).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| Arm |"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("\\_", "_") for cell in line.strip("|").split(" | ")])
    return pd.DataFrame(rows[2:], columns=rows[0]).set_index("Arm")
