"""The observations that a law is fitted to: the final loss of each run, and the run's values of the law's variables.

They are made from a run table by naming the column of each variable; the column given for N decides which parameters
count (activated, total, without embeddings). Rows that lack a number are left out and listed. A dense run counts as one
expert. Runs with equal values (and of one arm, where a column for arms is named) are one configuration and differ only
in their seeds. Configurations are independent of each other, except the lengths of one trunk (`shared_trunks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.found_runs import LeftOutRecord
from analysis.laws.forms import Values
from analysis.load_records import MissingDataError
from analysis.shared_trunks import trunks

EXPERTS = "experts"


@dataclass(frozen=True, eq=False)
class Observations:
    """The n runs of a fit: `values` maps each variable to [n] numbers, `columns` to its column in the run table.

    `loss` [n] is the final loss, and `run`, `arm` and `trunk` [n] are names; `trunk` is None for a run without one.
    """

    values: Mapping[str, Values]
    loss: Values
    run: tuple[str, ...]
    arm: tuple[str, ...]
    trunk: tuple[str | None, ...]
    columns: Mapping[str, str]
    left_out: tuple[LeftOutRecord, ...] = ()

    def __len__(self) -> int:
        """Returns the number of runs."""
        return len(self.loss)

    @property
    def configuration(self) -> NDArray[np.intp]:
        """Returns the index [n] of each run's configuration, counted from 0."""
        arms = np.unique(self.arm, return_inverse=True)[1]
        rows = np.stack([*self.values.values(), arms.astype(float)], axis=1)
        return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def unit(self) -> NDArray[np.intp]:
        """Returns the index [n] of what each run is independent in: its trunk, or its configuration without one."""
        first: dict[str, int] = {}
        pairs = zip(self.configuration.tolist(), self.trunk, strict=True)
        units = [number if trunk is None else first.setdefault(trunk, number) for number, trunk in pairs]
        return np.unique(units, return_inverse=True)[1]

    def take(self, chosen: NDArray[np.bool_]) -> Observations:
        """Returns the runs for which the mask `chosen` [n] is True."""
        values = {name: column[chosen] for name, column in self.values.items()}
        run, arm, trunk = (tuple(np.array(names, object)[chosen]) for names in (self.run, self.arm, self.trunk))
        return Observations(values, self.loss[chosen], run, arm, trunk, self.columns, self.left_out)


def observe(
    table: pd.DataFrame, columns: Mapping[str, str], loss: str = "val_loss", arm: str | None = None
) -> Observations:
    """Makes observations of the rows of `table`; `columns` maps each variable (`N`, `D`, `C`, `experts`) to its column.

    `arm` names a column that separates configurations which these variables do not tell apart. Raises
    `MissingDataError` when a column does not exist or when no row has a positive number for the loss and all variables.
    """
    for name, column in (*columns.items(), ("the loss", loss), ("the arm", arm or loss)):
        if column not in table.columns:
            raise MissingDataError(f"The table has no column {column}, which was named for {name}.")
    numbers = pd.DataFrame({name: pd.to_numeric(table[column]) for name, column in columns.items()}).astype(float)
    if EXPERTS in numbers:
        numbers[EXPERTS] = numbers[EXPERTS].fillna(0.0).replace(0.0, 1.0)  # records say 0 of a dense run
    numbers["loss"] = pd.to_numeric(table[loss]).astype(float)
    names = [str(name) for name in (table["run"] if "run" in table.columns else table.index)]
    is_usable = np.isfinite(numbers.to_numpy()) & (numbers.to_numpy() > 0)
    left_out = [
        _left_out(run, numbers.columns, row) for run, row in zip(names, is_usable, strict=True) if not row.all()
    ]
    kept = is_usable.all(axis=1)
    if not kept.any():
        raise MissingDataError(f"None of the {len(table)} runs has a loss and all of {', '.join(columns)}.")
    arms = table[arm].astype(str).to_list() if arm else [""] * len(table)
    everything = numbers.loc[:, list(columns)].to_numpy().T
    every = Observations(
        dict(zip(columns, everything, strict=True)), numbers["loss"].to_numpy(),
        tuple(names), tuple(arms), tuple(trunks(table)), dict(columns), tuple(left_out),
    )  # fmt: skip
    return every.take(kept)


def _left_out(run: str, columns: pd.Index[str], is_usable: NDArray[np.bool_]) -> LeftOutRecord:
    lacking = [name for name, usable in zip(columns, is_usable, strict=True) if not usable]
    return LeftOutRecord(run, f"no positive number for {', '.join(lacking)}")
