"""Takes what `ecdit sweep recipe` found into recipe-effects.csv, and makes the table of effects of docs/sampling.md.

    python docs/study/recipe_effects.py out/recipe       # after the sweep and its `ecdit evaluate`

A row of the table is a run: what it changes from the starting point, its Frechet distance and its loss.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from exported_runs import FOLDER, exported
from scipy import stats

from analysis.load_records import load_records
from sweeps.differing_settings import differing_settings
from sweeps.folder import SweepFolder

FILE = "recipe-effects.csv"
METRIC = "frechet-shapes"
OTHER_MEASURE = ("flow.", "train.repa_weight")
"""Settings whose losses are not comparable with those of the starting point: other targets, times, or a term more."""


def take(sweep: Path) -> None:
    """Writes the runs of the sweep, with what they change, into the committed table."""
    records, plan = load_records([sweep]), SweepFolder(sweep).read_plan()
    assert plan is not None
    apart = differing_settings(plan.runs)
    named = records.runs.set_index("run")
    evals = records.evals.assign(run=records.evals["run"].map(named["name"]))
    rows = []
    for run in [run for run in plan.runs if run.name in set(named["name"])]:
        own = evals[(evals["run"] == run.name) & (evals["weights"] == "ema")]
        loss = own[own["metric"] == "val_loss"].sort_values("images_seen")["value"].iloc[-1]
        settings = apart.get(run.name, {}) if run.config["routing"]["name"] != "dense" else {"routing.name": "dense"}
        changes = [f"{name}={value}" for name, value in settings.items()]
        for measured in own[own["metric"] == METRIC].to_dict("records"):
            rows.append({
                "name": run.name, "seed": run.config["seed"], "images": run.images,
                "change": ", ".join([*changes, *_in_sampling(json.loads(measured["settings_key"]))]),
                "frechet": measured["value"], "loss": loss,
            })  # fmt: skip
    pd.DataFrame(rows).to_csv(FOLDER / FILE, index=False, float_format="%.7g")


def _in_sampling(settings: dict[str, Any]) -> list[str]:
    """Returns the options of `ecdit evaluate` by which samples were made otherwise than by default."""
    start, stop = settings["guidance_start"], settings["guidance_stop"]
    found = [] if (start, stop) == (0, 1) else [f"--guidance-interval {start:g},{stop:g}"]
    return found + ([f"--ema {settings['ema_width']:g}"] if "ema_width" in settings else [])


def effects() -> Iterator[str]:
    """Yields the table of effects, the lowest distance first."""
    table = exported(FILE).fillna({"change": ""})
    start = table[table["change"] == ""]
    mean, spread = start["frechet"].mean(), start["frechet"].std()
    # A run differs by more than seeds do where it lies outside of the 95% prediction interval of the starting point.
    widest = stats.t.ppf(0.975, len(start) - 1) * spread * math.sqrt(1 + 1 / len(start))
    yield "| change | Frechet distance | beside the starting point | beyond seeds | loss |"
    yield "|---|--:|--:|---|--:|"
    rows = table.groupby("change", as_index=False)[["frechet", "loss"]].mean().to_dict("records")
    for row in sorted(rows, key=lambda row: row["frechet"]):
        is_start, is_other = not row["change"], str(row["change"]).startswith(OTHER_MEASURE)
        gap = row["frechet"] - mean
        distance = f"{row['frechet']:.1f}" + (f" ± {spread:.1f}" if is_start else "")
        cells = (
            f"**the starting point, {len(start)} seeds**" if is_start else f"`{row['change']}`",
            distance,
            "" if is_start else f"{gap / mean:+.0%}",
            "" if is_start else "lower" if gap < -widest else "higher" if gap > widest else "no",
            "" if is_other else f"{row['loss']:.4f}",
        )
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    take(Path(sys.argv[1]))
