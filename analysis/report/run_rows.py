"""The run table of a report: the settings, the cost and the results of every run.

Parameters are counted three ways: all; those a token passes through on average (activated); and those without the
embeddings of patches, timesteps and captions. Evaluations are the last ones of a run, in the metric's own units, in
columns `evals.METRIC@GUIDANCE`. `flops_per_second` is what training achieved: its FLOPs per image times its median
images per second. `utilisation` divides it by the fastest matmul that the run measured on its machine.
"""

from __future__ import annotations

import json
from functools import partial

import pandas as pd

from analysis.columns import Column
from analysis.conditions import is_reconstructed
from analysis.executed_flops import train_flops
from analysis.load_records import Records
from analysis.run_table import FINAL_METRICS, INFERENCE, fixed, significant

SCORE = "evals."


def whole(value: float) -> str:
    """Formats a number without decimals and with separated thousands, as in `12,800`."""
    return f"{value:,.0f}"


four = partial(fixed, decimals=4)

COLUMNS = (
    Column("name", "Run"),
    Column("setup", "Setup"),
    Column("arm", "Arm"),
    Column("routing.num_experts", "Experts", whole),
    Column("routing.capacity_factor", "f_c", "{:g}".format),
    Column("seed", "Seed", whole),
    Column("val_loss", "Val. loss", four),
    Column("val_loss_ema", "Val. loss EMA", four),
    Column("val_loss_std", "± std over seeds", four),
    Column("params_total", "Params", significant),
    Column("params_active", "Activated", significant),
    Column("params_without_embeddings", "Without embeddings", significant),
    Column("flops_per_image", "FLOPs/image", significant),
    Column("executed_flops_per_image", "Executed FLOPs/image", significant),
    Column("executed_flops_per_image_same_t", "Executed at one t", significant),
    Column("train_flops", "Training FLOPs", significant),
    Column("flops_before", "Of parents", significant),
    Column("planned_flops", "Planned training FLOPs", significant),
    Column("images_seen", "Images", whole),
    Column("train_seconds", "Seconds", whole),
    Column("images_per_second", "Images/s", partial(fixed, decimals=1)),
    Column("flops_per_second", "FLOP/s achieved", significant),
    Column("utilisation", "Utilisation", partial(fixed, decimals=1, scale=100, unit="%")),
    Column("train_loss", "Train loss", four),
    Column("val_loss_same_t", "Same-t loss", four),
    Column("val_loss_training_decision", "Loss, deciding as in training", four),
    Column("dropped_share", "Dropped share", four),
    Column(INFERENCE, "Inference s/image", four),
    Column("model.name", "Preset"),
    Column("routing.name", "Routing"),
    Column("retry_of", "Repeats"),
)
PARENTS = "flops_before"
SELDOM = ("executed_flops_per_image", "executed_flops_per_image_same_t", "val_loss_training_decision")
"""Values that only runs have whose routers decide or compute otherwise than planned."""


def run_rows(records: Records, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the run table with the columns of `COLUMNS` and the last scores."""
    rows = table.assign(
        train_flops=train_flops(table),
        planned_flops=table["images_seen"].astype(float) * table["planned_train_flops_per_image"]
        + table["flops_before"],
        flops_per_second=table["images_per_second"] * table["train_flops_per_image"],
        val_loss_std=table.groupby(["setup", "arm"])["val_loss"].transform("std"),
    )
    scores = last_scores(records.evals)
    return rows.merge(scores, left_on="run", right_index=True, how="left", validate="one_to_one")


def last_scores(evals: pd.DataFrame) -> pd.DataFrame:
    """Returns the last written score of every run (index) for every metric, guidance scale and weights (columns).

    Validation losses and inference time have columns of their own in `COLUMNS` and are left out here, as are metrics
    that are a part of another (named with `/`), the losses per timestep, and values of reconstructed averages, which
    the figure `ema-width` shows.
    """
    is_final = evals["metric"].isin([metric for metric, _ in FINAL_METRICS.values()])
    is_part = evals["metric"].str.contains("/") | evals["metric"].str.match(r"val_loss(_same_t)?_t\d")
    rows = evals[~is_final & ~is_part & ~is_reconstructed(evals) & (evals["metric"] != INFERENCE)]
    names = {key: guidance_text(key) for key in rows["settings_key"].unique()}
    named = rows.assign(column=SCORE + rows["metric"] + rows["settings_key"].map(names).fillna("").astype(str))
    named.loc[named["weights"] == "ema", "column"] += " (EMA)"
    last = named.drop_duplicates(["run", "column"], keep="last")
    return last.pivot(index="run", columns="column", values="value")


def guidance_text(settings_key: str) -> str:
    """Returns the guidance scale of the settings, as in `@2`, or an empty text where they have none."""
    scale = json.loads(settings_key).get("guidance")
    return "" if scale is None else f"@{scale:g}"


def columns_with_scores(rows: pd.DataFrame) -> list[Column]:
    """Returns `COLUMNS` followed by one column for each score that the rows have.

    Without those of `SELDOM` in which nothing stands, and without planned FLOPs where all runs followed their plan.
    """
    scores = [str(name) for name in rows.columns if name.startswith(SCORE)]
    empty = {name for name in SELDOM if name in rows and rows[name].isna().all()}
    if "planned_flops" in rows and (rows["planned_flops"] == rows["train_flops"]).all():
        empty.add("planned_flops")
    if PARENTS in rows and not rows[PARENTS].any():
        empty.add(PARENTS)
    return [
        *(column for column in COLUMNS if column.key not in empty),
        *(Column(name, name.removeprefix(SCORE), partial(significant, digits=4)) for name in scores),
    ]
