"""Alarms of a comparison: arms whose validation loss says something else than the quality of what training made.

Two cases are looked for, both of the decision in inference. A router with thresholds may admit other pairs there than
training did, so that its validation loss is off; `val_loss_training_decision` shows by how much. A router with a
capacity may drop tokens where all images of a batch have one timestep, which inflates the loss in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.run_table import is_missing

LEAST_SHIFT = 0.01
"""Relative differences in loss of at most this are no alarm."""
LEAST_MORE_DROPPED = 0.02
"""The share of tokens by which drops on batches of one timestep must exceed those on mixed batches."""


def alarms(arms: pd.DataFrame) -> list[str]:
    """Returns one line for each alarm in the arm table, with its numbers."""
    return [*_decisions(arms), *_drops(arms)]


def _decisions(arms: pd.DataFrame) -> Iterator[str]:
    """Yields the arms whose losses with the decisions of inference and of training differ beyond 1% and seed noise."""
    of_setup = dict(list(arms.groupby("setup")))
    for arm in arms.dropna(subset=["val_loss_mean", "val_loss_training_decision"]).to_dict("records"):
        loss, training = arm["val_loss_mean"], arm["val_loss_training_decision"]
        noise = seed_noise(of_setup[arm["setup"]], arm)
        if abs(loss / training - 1) > LEAST_SHIFT and abs(loss - training) > (noise or 0.0):
            spread = "seed noise not known" if noise is None else f"seed noise {noise:.4f}"
            yield (
                f"{arm['arm']} ({arm['setup']}): the validation loss is {loss:.4f} with the decision of inference and "
                f"{training:.4f} with that of training ({loss / training - 1:+z.1%}; {spread}), so the decision of "
                "inference is off."
            )


def _drops(arms: pd.DataFrame) -> Iterator[str]:
    """Yields the arms that drop more on batches of one timestep, and whose loss there is higher for it.

    The two kinds of batches hold other t. Where dense was run, only what the loss rises more than that of dense counts.
    """
    measured = arms.dropna(subset=["val_loss_same_t_mean"])
    by_arm = {(arm["setup"], arm["arm"]): arm for arm in measured.to_dict("records")}
    for arm in measured.dropna(subset=["dropped_share", "dropped_share_same_t"]).to_dict("records"):
        mixed, same = arm["dropped_share"], arm["dropped_share_same_t"]
        dense = by_arm.get((arm["setup"], arm["baseline"]))
        rise, of_dense = _rise(arm), None if dense is None else _rise(dense)
        if same - mixed > LEAST_MORE_DROPPED and rise - (of_dense or 0.0) > LEAST_SHIFT:
            beside = "" if of_dense is None else f", dense by {of_dense:+z.1%}"
            yield (
                f"{arm['arm']} ({arm['setup']}): {same:.1%} of the tokens are processed by nobody on batches of one "
                f"timestep and {mixed:.1%} on mixed ones, and the loss rises from {arm['val_loss_mean']:.4f} to "
                f"{arm['val_loss_same_t_mean']:.4f} (by {rise:+z.1%}{beside}), so drops inflate validation in sampling."
            )


def _rise(arm: dict[Any, Any]) -> float:
    return float(arm["val_loss_same_t_mean"] / arm["val_loss_mean"]) - 1


def seed_noise(arms: pd.DataFrame, arm: dict[Any, Any]) -> float | None:
    """Returns the standard deviation of the loss over seeds: of the arm, else pooled over `arms`, else None."""
    if not is_missing(arm["val_loss_std"]):
        return float(arm["val_loss_std"])
    others = arms[arms["val_loss_std"].notna()]
    freedom = int((others["num_seeds"] - 1).sum())
    squares = float((others["val_loss_std"] ** 2 * (others["num_seeds"] - 1)).sum())
    return math.sqrt(squares / freedom) if freedom else None
