"""Puts runs that began from the weights of others beside the runs from scratch that spend as much in all.

Such a run is shorter than one from scratch of equal compute, so that its `train.images` would make a setup of its own.
Where a run from scratch with the same other settings spends the same training FLOPs, those of the parents included, it
is compared with that one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd

from analysis.executed_flops import train_flops
from analysis.found_runs import BEGAN_FROM
from analysis.load_records import FROM_SCRATCH

LENGTH = "train.images"
EQUAL_COMPUTE = 0.03
"""Two arms or runs whose FLOPs differ relatively by no more than this are called equal."""


def began_from_weights(runs: pd.DataFrame) -> pd.Series[bool]:
    """Says of each run whether it began from the weights of another one, also where these have cost nothing here."""
    if BEGAN_FROM not in runs:
        return pd.Series(False, index=runs.index)
    return runs[BEGAN_FROM].fillna(FROM_SCRATCH) != FROM_SCRATCH


def with_lengths_alike(runs: pd.DataFrame, held: Sequence[str]) -> pd.DataFrame:
    """Returns `runs` in which those with a parent have the `train.images` of a run from scratch of equal compute.

    `held` are the settings in which both must be equal. A run for which there is none keeps its own length.
    """
    began = began_from_weights(runs)
    if not began.any():
        return runs
    others = [name for name in held if name != LENGTH]
    texts = pd.Series([json.dumps(row, default=str) for row in runs[others].to_dict("records")], index=runs.index)
    spent, alike = train_flops(runs), runs.copy()
    from_scratch = texts[~began].groupby(texts[~began]).groups
    for run in runs.index[began]:
        gaps = (spent[from_scratch.get(texts[run], [])] / spent[run] - 1).abs()
        if len(gaps) and gaps.min() <= EQUAL_COMPUTE:
            alike.loc[run, LENGTH] = runs.loc[gaps.idxmin(), LENGTH]
    return alike
