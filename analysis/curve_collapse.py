"""Measures how well the loss curves of one arm collapse onto one when each is normalised to its own end.

Qiu et al. 2025 (arXiv 2507.02119): where sizes are tuned alike and trained for the length that suits them, the curves
of reducible loss over compute, (L(x c_end) - E) / (L(c_end) - E) at the share x of a run's compute, are one curve for
all sizes. Where learning rates or lengths do not suit the sizes, they are not. E is the loss that remains, which comes
from the law of the arm where its runs identify one, and is 0 elsewhere.

Two numbers sum it up, both root mean squares over shares x before the end, relative to the mean curve. The deviation is
the standard deviation between sizes (means over their seeds), and the noise that between the seeds of one size. A
deviation below the noise is what the paper calls supercollapse. Both are 0 at the end by construction, so points near
it count little; the first fifth of training is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.curves import validation_curves
from analysis.executed_flops import train_flops
from analysis.laws.families import condition_families
from analysis.laws.fit import FitError
from analysis.laws.forms import POWER_LAW
from analysis.laws.identify import identified_fit
from analysis.laws.observations import observe
from analysis.load_records import MissingDataError, Records

FIRST_SHARE = 0.2
"""The share of training from which curves are compared; before it the warmup decides the loss."""
NUM_SHARES = 37
"""The number of shares of compute, evenly spaced in their logarithm, at which curves are compared."""
MIN_CELLS = 2
WAY_OUT = "Train an arm at several sizes or lengths, for example: ecdit sweep study"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Collapse:
    """The normalised curves of one arm under one condition, and how far they are from one curve.

    `curves` has a row per cell (size at a length) and share of compute: `setup`, `flops` (of the whole training),
    `share`, `loss` (normalised, a mean over seeds), `num_seeds`. `deviation` is between cells, and `noise` between the
    seeds of a cell, or None where every cell has one seed.
    """

    condition: str
    arm: str
    router: str
    variant: int
    floor: float
    curves: pd.DataFrame
    deviation: float
    noise: float | None

    @property
    def name(self) -> str:
        """Returns the arm with its condition, as in `Expert choice, optim.learning_rate=0.001`."""
        return self.arm + self.condition

    def __str__(self) -> str:
        """Says in one line how far the curves are from one curve, and whether that is below the noise of seeds."""
        num = self.curves["setup"].nunique()
        floor = f"loss above {self.floor:.4g}" if self.floor else "loss without a floor, as the runs identify none"
        if self.noise is None:
            beside = "one seed each, so the noise is not known"
        else:
            beside = f"{'below' if self.deviation < self.noise else 'above'} the {self.noise:.2%} between seeds"
        return f"{self.name}: {num} curves differ by {self.deviation:.2%} ({beside}); {floor}."


def collapses(records: Records, table: pd.DataFrame) -> list[Collapse]:
    """Returns the collapse of every arm with at least two sizes or lengths under equal conditions.

    Raises `MissingDataError` where no arm has them, or where curves have too few evaluations to be compared.
    """
    by_run = dict(list(validation_curves(records, table).groupby("run", sort=False)))
    found = [each for condition, runs in condition_families(table) for each in _of_condition(condition, runs, by_run)]
    if not found:
        raise MissingDataError("No arm has validation curves of two sizes or lengths to compare.", WAY_OUT)
    return found


def _of_condition(condition: str, runs: pd.DataFrame, by_run: Mapping[Any, pd.DataFrame]) -> Iterator[Collapse]:
    for arm, ours in runs.groupby("arm", sort=False):
        floor = _floor(ours)
        normal = pd.concat([_normalised(by_run[run], floor) for run in ours["run"]])
        if normal["setup"].nunique() >= MIN_CELLS:
            cells = normal.groupby(["setup", "share"], sort=False, as_index=False).agg(
                flops=("flops", "mean"), loss=("loss", "mean"), num_seeds=("run", "nunique")
            )
            first = ours.iloc[0]
            deviation, noise = _spread_between(cells), _spread_within(normal)
            yield Collapse(
                condition, str(arm), first["routing.name"], int(first["variant"]), floor, cells, deviation, noise
            )


def _floor(runs: pd.DataFrame) -> float:
    """Returns the loss that remains by the law of the arm in compute, or 0 where the runs identify no floor."""
    spent = runs.assign(train_flops=train_flops(runs))
    try:
        return identified_fit(POWER_LAW, observe(spent, {"C": "train_flops"}, arm="setup")).parameters["E"]
    except (MissingDataError, FitError):
        return 0.0


def _normalised(curve: pd.DataFrame, floor: float) -> pd.DataFrame:
    """Returns the curve of one run at `NUM_SHARES` shares of its compute; empty where it begins too late for them."""
    at, loss = curve["flops"].to_numpy(float), curve["loss"].to_numpy(float)
    shares = np.geomspace(FIRST_SHARE, 1.0, NUM_SHARES)
    if len(at) < MIN_CELLS or at[0] > FIRST_SHARE * at[-1] * (1 + 1e-9) or loss[-1] <= floor:
        shares = shares[:0]
    values = np.interp(np.log(shares), np.log(at / at[-1]), (loss - floor) / (loss[-1] - floor))
    about = curve.iloc[0]
    return pd.DataFrame(
        {"run": about["run"], "setup": about["setup"], "flops": at[-1], "share": shares, "loss": values}
    )


def _spread_between(cells: pd.DataFrame) -> float:
    """Returns the root mean square over shares before the end of the relative deviation between cells."""
    by_share = cells[cells["share"] < 1].groupby("share")["loss"]
    return float(np.sqrt(((by_share.std() / by_share.mean()) ** 2).mean()))


def _spread_within(normal: pd.DataFrame) -> float | None:
    """Returns the same between the seeds of a cell, pooled over cells, or None where every cell has one seed."""
    before = normal[normal["share"] < 1]
    cells = before.groupby(["setup", "share"])["loss"]
    freedom = cells.size() - 1
    if not freedom.sum():
        return None
    relative = (before["loss"] / cells.transform("mean").reindex(before.index) - 1) ** 2
    return float(np.sqrt(relative.sum() / freedom.sum()))
