"""Says how the learning rate of each arm was found: tuned on proxies of the arm, or given.

A comparison in which all arms share a rate that was tuned for one of them favours that one, so that tables and notes
name beside every comparison where its rates come from. A sweep with `ecdit.tune` writes into `run.json` how it found
the value (`TunedSetting`). Runs that differ only in a value that was tuned for each arm are of one setup.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.records.record_types import RunRecord, TunedSetting

LEARNING_RATE = "optim.learning_rate"
TUNED = "tuned"
"""The word that stands for the value of a setting that was tuned for each arm."""


def tuned_facts(record: RunRecord) -> dict[str, Any]:
    """Returns the columns of a run that say how its setting was tuned, None where it was given.

    `tuned_setting` is its name, `tuned` the words of `TunedSetting`, and `tuned_short` those for a table of arms.
    """
    tuned = record.tuned
    return {
        "tuned_setting": None if tuned is None else tuned.setting,
        TUNED: None if tuned is None else str(tuned),
        "tuned_short": None if tuned is None else _short(tuned),
    }


def with_tuned_values_alike(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns `runs` with the word `tuned` in place of every value that was tuned."""
    alike = runs.copy()
    for setting, tuned in runs[runs["tuned_setting"].notna()].groupby("tuned_setting"):
        alike[setting] = alike[setting].astype(object)
        alike.loc[tuned.index, str(setting)] = TUNED
    return alike


def rate_text(run: pd.Series[Any]) -> str:
    """Returns how the rate of an arm was found, by one of its runs: `0.003, given`, or `0.002, best of 3`."""
    short = run["tuned_short"]
    return f"{run[LEARNING_RATE]:g}, given" if short is None or short != short else str(short)


def tuning_notes(table: pd.DataFrame) -> Iterator[str]:
    """Yields for the arms of a run table what was tuned and how, and which learning rates were given."""
    given = table[table["tuned_setting"].isna() | (table["tuned_setting"] != LEARNING_RATE)]
    if len(given):
        rates = ", ".join(f"{rate:g}" for rate in sorted(given[LEARNING_RATE].unique()))
        whose = "every arm" if len(given) == len(table) else ", ".join(dict.fromkeys(given["arm"]))
        yield f"{LEARNING_RATE} was given and not tuned for {whose}: {rates}."
    tuned = table[table["tuned_setting"].notna()]
    for (setting, how), runs in tuned.groupby(["tuned_setting", TUNED], sort=False):
        arms = [
            f"{arm} {value:g}"
            for arm, value in runs.drop_duplicates(["arm", str(setting)])[["arm", setting]].to_numpy()
        ]
        yield f"{setting} was tuned for each arm: {', '.join(arms)} ({how})."


def _short(tuned: TunedSetting) -> str:
    value = f"{tuned.value:g}" if tuned.setting == LEARNING_RATE else f"{tuned.setting}={tuned.value:g}"
    return f"{value}, best of {len(tuned.values)}{', at the edge' if tuned.edge else ''}"
