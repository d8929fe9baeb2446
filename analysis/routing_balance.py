"""Measures how evenly a run used its experts: the largest overload, and how many pairs of experts work together.

MaxVio is E max(load) - 1 for the shares `load` of E experts (arXiv 2408.15664): 0 is perfect balance, and 1 says that
the fullest expert has twice its share. Pair usage is the combination usage of Expert Race (arXiv 2503.16057): the share
of expert pairs that make up 95% of all co-activations. Both are of the last validation of a run on mixed batches, and
means over its routed layers.
"""

from __future__ import annotations

import pandas as pd

from analysis.found_runs import LeftOutRecord
from analysis.load_records import Records, read_routing

COLUMNS = ("max_violation", "pair_usage")


def with_balance(records: Records, table: pd.DataFrame) -> tuple[pd.DataFrame, list[LeftOutRecord]]:
    """Returns the run table with `COLUMNS` (missing where not recorded), and the rows that could not be read."""
    rows, left_out = records.once(_last_rows)
    means = rows.merge(table[["run", "images_seen"]], on=["run", "images_seen"]).groupby("run")
    found = {name: table["run"].map(means[name].mean()).astype("float64") for name in COLUMNS}
    return table.assign(**found), left_out


def _last_rows(records: Records) -> tuple[pd.DataFrame, list[LeftOutRecord]]:
    """Returns `COLUMNS` by run and routed layer, and the rows that could not be read."""
    rows, left_out = read_routing(records, at_end=True)
    rows = rows[rows["condition"] == "mixed_t"]
    violations = [len(load) * max(load) - 1 for load in rows["load"]]
    rows = rows.assign(max_violation=pd.Series(violations, index=rows.index, dtype="float64"))
    return rows[["run", "images_seen", *COLUMNS]], left_out
