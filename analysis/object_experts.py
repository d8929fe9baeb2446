"""The experts that tokens of objects and of background get, of every run, by routed layer and time.

EC-DIT (arXiv 2410.02098, section 4.4) says that late layers and late timesteps spend their compute on the objects of
the prompt. `ecdit evaluate --metrics routing` measures it on true scenes, where the tokens of objects are known, and
`maps.py` reads one such measurement. Here it is a table of all runs, for means and tests over seeds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.maps import MappedRun, scene_maps
from analysis.seed_intervals import Interval, interval_of_mean
from experiments.records.run_folder import RunDir

COLUMNS = ("run", "layer", "time", "object_experts", "background_experts")


def object_experts(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each run of the run table, routed layer and time that was measured on scenes.

    `object_experts` and `background_experts` are mean experts per token. Runs without such a measurement have no row.
    """
    rows: list[dict[str, Any]] = []
    for run, router, arm in table[["run", "routing.name", "arm"]].itertuples(index=False, name=None):
        maps = scene_maps(MappedRun(RunDir(Path(run)), router, arm))
        for row in maps.rows if maps is not None and router != "dense" else ():
            if row.time is not None and row.object_experts is not None and row.background_experts is not None:
                rows.append({"run": run, **{name: getattr(row, name) for name in COLUMNS[1:]}})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def object_claims(rows: pd.DataFrame) -> dict[str, Interval]:
    """Returns what one arm says of EC-DIT's claim, as logarithms over the seeds in the column `seed` of `rows`.

    `more` is the log of the ratio of experts per token on objects to those on background, over all layers and times;
    `late times` that at t below 0.5 minus that above; `late layers` that of the last routed layer minus that of the
    first. Above 0 each is what the claim says. `late layers` is missing with one routed layer. A ratio is one of means,
    so that layers and times count by the experts that they give.
    """
    first, last = rows["layer"].min(), rows["layer"].max()
    parts = {
        "more": (rows, None),
        "late times": (rows[rows["time"] < 0.5], rows[rows["time"] > 0.5]),
        "late layers": (rows[rows["layer"] == last], rows[rows["layer"] == first]),
    }
    if first == last:
        del parts["late layers"]
    found = {}
    for name, (part, beside) in parts.items():
        logs = _log_ratios(part) if beside is None else _log_ratios(part) - _log_ratios(beside)
        known = [float(value) for value in logs if math.isfinite(value)]
        if known:
            found[name] = interval_of_mean(known)
    return found


def _log_ratios(rows: pd.DataFrame) -> pd.Series[float]:
    sums = rows.groupby("seed")[["object_experts", "background_experts"]].sum()
    ratio = (sums["object_experts"] / sums["background_experts"]).astype(float)
    return ratio.map(lambda value: math.log(value) if value > 0 else math.nan)
