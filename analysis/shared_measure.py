"""Puts the losses of runs with different objectives on one measure, before anything is compared.

The validation loss of DDPM is an error of noise and that of EDM one of a scaled image, so that their values must not
share an axis with a velocity error. Training records the velocity error that each prediction implies beside the loss.
For runs whose loss is another number, `val_loss` and its parts therefore stand for the velocity error here, and the
training losses of `steps`, for which there is no such measure, are missing. Figures and tables then need not know of
objectives: what they call a validation loss is a velocity error in every run, on the same images, noise and
signal-to-noise ratios.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.metrics import VELOCITY_ERROR
from experiments.config.objectives import RECTIFIED_FLOW, loss_is_velocity_error
from experiments.text import agreeing

LOSSES = {VELOCITY_ERROR: "val_loss", "validation-velocity-error": "validation-loss"}
"""The names with which metrics of the velocity error begin, and those of the losses that they stand for."""


def has_another_loss(settings: Mapping[Any, Any]) -> bool:
    """Says of the dotted settings of a run whether its loss is another number than the velocity error."""
    objective = settings.get("flow.objective", RECTIFIED_FLOW)
    return not loss_is_velocity_error(str(objective), str(settings.get("flow.prediction", "velocity")))


def on_shared_measure(steps: pd.DataFrame, evals: pd.DataFrame, others: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns `steps` and `evals`, where the losses of the runs in `others` are their velocity errors."""
    metrics = evals["metric"].astype(str)
    is_error, is_loss = (metrics.str.startswith(tuple(names)) for names in (LOSSES, LOSSES.values()))
    if not (others or is_error.any()):
        return steps, evals
    is_other = evals["run"].isin(others)
    kept = evals[~(is_error & ~is_other) & ~(is_loss & is_other)].copy()
    for error, loss in LOSSES.items():
        kept["metric"] = kept["metric"].str.replace(error, loss, regex=False)
    if others:
        steps = steps.assign(loss=steps["loss"].mask(steps["run"].isin(others), np.nan))
    return steps, kept.reset_index(drop=True)


def measure_note(runs: pd.DataFrame) -> str:
    """Says which runs are compared by their velocity error instead of their loss; empty where none is."""
    others = [row for row in runs.to_dict("records") if has_another_loss(row)]
    if not others:
        return ""
    has, their = agreeing(len(others), "has", "have"), agreeing(len(others), "its", "their")
    names = {f"{row.get('flow.objective', RECTIFIED_FLOW)} of {row['flow.prediction']}" for row in others}
    return (
        f"{len(others)} of {len(runs)} runs {has} a loss of another kind ({', '.join(sorted(names))}): {their} "
        f"{VELOCITY_ERROR} stands for val_loss, and {their} training losses are left out."
    )
