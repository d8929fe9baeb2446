"""Final losses read off smoothed validation curves, and how much less they scatter between seeds.

The last validation of a run is one measurement. The end of its smoothed curve (`curves.denoised`, Whittaker's smoother)
also uses the validations before it, so it scatters less where noise moves single evaluations. It scatters as much where
whole curves differ between seeds, which no smoothing removes. The gain is therefore measured and stated: it is the
standard deviation between seeds after smoothing, over that before, pooled over arms. Smoothing can bias the end of a
curve that bends there, as with a learning rate that decays to 0; the mean change of the loss is stated too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.curves import denoised, validation_curves
from analysis.load_records import Records
from experiments.text import agreeing


@dataclass(frozen=True)
class SmoothingGain:
    """The spread between seeds before and after smoothing (None where every arm has one seed), and the mean change.

    `change` is the mean of smoothed over measured losses, minus 1.
    """

    spread_before: float | None
    spread_after: float | None
    change: float
    num_smoothed: int
    num_runs: int

    def __str__(self) -> str:
        """Says in one sentence what smoothing changed."""
        about = (
            f"{self.num_smoothed} of {self.num_runs} curves {agreeing(self.num_smoothed, 'was', 'were')} smoothed, "
            f"which moves the loss by {self.change:+z.2%}"
        )
        if self.spread_before is None or self.spread_after is None:
            noise = "one seed an arm does not show what it gains in noise"
        elif self.spread_before == 0:
            noise = "seeds agree exactly without it"
        else:
            ratio = self.spread_after / self.spread_before
            noise = (
                f"the spread between seeds is {ratio:.2f} times what it was "
                f"({self.spread_before:.3g} before, {self.spread_after:.3g} after)"
            )
        return f"Laws are fitted to the ends of smoothed validation curves: {about}; {noise}."


def with_smoothed_losses(records: Records, table: pd.DataFrame) -> tuple[pd.DataFrame, SmoothingGain]:
    """Returns the run table with `val_loss` read off the end of each run's smoothed curve, and what that gains."""
    ends, smoothed = {}, 0
    for run, curve in validation_curves(records, table).groupby("run", sort=False):
        loss = denoised(curve["images_seen"].to_numpy(float), curve["loss"].to_numpy(float))
        ends[run] = float(loss[-1])
        smoothed += bool((loss != curve["loss"].to_numpy(float)).any())
    after = table.assign(val_loss=table["run"].map(ends).astype(float))
    change = float((after["val_loss"] / table["val_loss"]).mean()) - 1
    return after, SmoothingGain(_spread(table), _spread(after), change, smoothed, len(table))


def _spread(table: pd.DataFrame) -> float | None:
    """Returns the standard deviation of the loss between the seeds of an arm, pooled over arms."""
    by_arm = table.groupby(["setup", "arm"])["val_loss"]
    freedom = int((by_arm.count() - 1).clip(lower=0).sum())
    if freedom == 0:
        return None
    return float(np.sqrt(((table["val_loss"] - by_arm.transform("mean")) ** 2).sum() / freedom))
