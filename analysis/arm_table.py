"""The arm table: one row per setup and arm, means over seeds beside what the arm costs.

The columns are keys of the rows of `ecdit compare-routing --json`. `val_loss_std` is the standard deviation over seeds
with n - 1 and is missing with one seed. `dropped_share` is the share of tokens that were dropped (token choice) or that
no expert chose (expert choice); dense models have none. Columns with `_same_t` are measured on batches in which all
images have one timestep, because that is what a router meets in sampling. `num_diverged` counts the runs that diverged,
which are in no mean; an arm of which all runs diverged has a row without losses, and so have imported weights.
`train_flops_per_image` is what training spent; where that is not the plan, `executed_train_flops_per_image` has it too,
beside the plan in `planned_train_flops_per_image`. `train_flops` are those of the whole training, in which
`flops_before` are of the runs that the first weights come from. `max_violation` and `pair_usage` are those of
`routing_balance.py`. `evals.METRIC` are the scores of `arm_scores.py`, where any run has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.arm_scores import arm_scores
from analysis.arms import arm_list
from analysis.baselines import baselines, narrowed
from analysis.curves import mean_over_seeds, reach, validation_curves
from analysis.diverged_runs import diverged_table, finished_arms
from analysis.executed_flops import train_flops
from analysis.load_records import Records
from analysis.routing_balance import with_balance
from analysis.run_table import INFERENCE, is_missing
from analysis.seed_intervals import interval_of_mean, standard_deviation
from analysis.tuned_arms import LEARNING_RATE, rate_text

MEANS = {
    "val_loss_mean": "val_loss",
    "val_loss_same_t_mean": "val_loss_same_t",
    "val_loss_ema_mean": "val_loss_ema",
    "dropped_share": "dropped_share",
    "dropped_share_same_t": "dropped_share_same_t",
    "images_per_second": "images_per_second",
    INFERENCE: INFERENCE,
    "val_loss_training_decision": "val_loss_training_decision",
    "executed_flops_per_image": "executed_flops_per_image",
    "executed_flops_per_image_same_t": "executed_flops_per_image_same_t",
    "executed_train_flops_per_image": "executed_train_flops_per_image",
    "max_violation": "max_violation",
    "pair_usage": "pair_usage",
    "peak_memory_gib": "peak_memory_gib",
    "train_flops": "train_flops",
    "flops_before": "flops_before",
}
NEVER = {"images_to_dense_loss": None, "times_sooner": None}
COSTS = (
    "params_total", "params_active", "flops_per_image", "train_flops_per_image", "planned_train_flops_per_image",
)  # fmt: skip
SHOWN = (
    "run", "model.name", "train.images", "routing.group_images", "tuned_short", LEARNING_RATE, *COSTS, *MEANS.values(),
)  # fmt: skip
"""The columns of the run table that a row of an arm is made of, beside those by which arms are compared."""


def arm_table(records: Records, table: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per setup and arm of the run table, baselines first.

    `baseline` is the dense arm that the arm is measured from (`baselines.py`), missing where none was run.
    `images_to_dense_loss` is the number of images at which the arm's mean curve reaches the final loss of its baseline,
    and `times_sooner` is the images of that model divided by it. Both are missing when the arm never does.
    """
    curves = mean_over_seeds(validation_curves(records, table))
    table, _ = with_balance(records, table)
    table = table.assign(train_flops=train_flops(table))
    of_setup = dict(list(curves.groupby("setup")))
    diverged = diverged_table(records)
    both = table if diverged.empty else pd.concat([table, _shown(diverged, records, table)], ignore_index=True)
    lost, rows = set(diverged["run"]), []
    for setup, runs in narrowed(both, *SHOWN).groupby("setup", sort=False):
        baseline_of = baselines(runs[runs["val_loss"].notna()])
        reached = _images_to_dense_loss(of_setup.get(setup, curves.iloc[:0]), baseline_of)
        for label, _, _ in arm_list(runs):
            row = _arm_row(runs[runs["arm"] == label], lost)
            rows.append(row | reached.get(label, NEVER) | {"baseline": baseline_of.get(label)})
    numbers = ["val_loss_std", "val_loss_low", "val_loss_high", *MEANS, *NEVER]
    arms = pd.DataFrame(rows).astype(dict.fromkeys(numbers, "float64"))
    for column, means in arm_scores(records, table).means.items():
        arms[column] = means.reindex(pd.MultiIndex.from_frame(arms[["setup", "arm"]])).to_numpy()
    return arms


def json_rows(arms: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the rows as JSON takes them, with null for a missing value."""
    return missing_as_none(arms.drop(columns="variant"))


def missing_as_none(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns each row as a dict, with None for a missing value."""
    return [
        {str(key): None if isinstance(value, float) and is_missing(value) else value for key, value in row.items()}
        for row in rows.astype(object).to_dict("records")
    ]


def _shown(diverged: pd.DataFrame, records: Records, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs that diverged in the setups of `table`, or in setups in which no run finished."""
    hidden = set(finished_arms(records)["setup"]) - set(table["setup"])
    return diverged[~diverged["setup"].isin(hidden)].reindex(columns=table.columns)


def _arm_row(runs: pd.DataFrame, lost: set[str]) -> dict[str, Any]:
    """Returns the row of the arm of `runs`, of which those in `lost` diverged. Imported weights have no loss either."""
    first = runs.iloc[0]
    losses = runs["val_loss"].dropna().to_list()
    loss = interval_of_mean(losses) if losses else None
    return {
        "routing": first["routing.name"],
        "arm": first["arm"],
        "preset": first["model.name"],
        "setup": first["setup"],
        "num_experts": int(first["routing.num_experts"]),
        "capacity_factor": first["routing.capacity_factor"],
        "group_images": first["routing.group_images"],
        **{cost: int(first[cost]) for cost in COSTS},
        "train_images": int(first["train.images"]),
        "rate": rate_text(first),
        "num_seeds": len(losses),
        "num_diverged": int(runs["run"].isin(lost).sum()),
        "val_loss_std": standard_deviation(losses),
        "val_loss_low": loss and loss.low,
        "val_loss_high": loss and loss.high,
        **{key: runs[column].astype("float64").mean() for key, column in MEANS.items()},
        "kind": first["arm_kind"],
        "variant": int(first["variant"]),
    }


def _images_to_dense_loss(curves: pd.DataFrame, baseline_of: Mapping[str, str]) -> dict[str, dict[str, float | None]]:
    """Maps each arm that has a baseline and a curve to its `images_to_dense_loss` and `times_sooner`."""
    by_arm = {
        str(arm): (curve["images_seen"].to_list(), curve["loss"].to_list())
        for arm, curve in curves.groupby("arm", sort=False)
    }
    ours = {arm: dense for arm, dense in baseline_of.items() if arm in by_arm}
    targets = {dense: by_arm[dense][1][-1] for dense in ours.values()}
    reached = {dense: reach(*by_arm[dense], target) for dense, target in targets.items()}
    found: dict[str, dict[str, float | None]] = {}
    for arm, dense in ours.items():
        at, dense_images = reach(*by_arm[arm], targets[dense]), reached[dense]
        assert dense_images is not None
        found[arm] = {"images_to_dense_loss": at, "times_sooner": None if at is None else dense_images / at}
    return found
