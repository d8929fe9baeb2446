"""Says what the seeds of a planned sweep can separate, by the spread over the seeds of an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analysis.columns import Column
from ecdit_cli._console import print_rows, say

if TYPE_CHECKING:
    from analysis.seed_planning import PlanPower
    from sweeps.plan import Plan

COLUMNS = (
    Column("arm", "arm"),
    Column("reference", "against"),
    Column("setup", "setup", priority=2),
    Column("gap", "gap", "{:+z.4f}".format),
    Column("spread", "spread", "{:.4f}".format, priority=1),
    Column("seeds", "seeds", str),
    Column("seeds_corrected", "corrected", str, priority=1),
)


def power_of(plan: Plan, earlier: Path) -> PlanPower:
    """Returns the power of the runs that the sweep file compares. Raises `EcditError` as `plan_power` does."""
    from analysis.load_records import load_records
    from analysis.run_table import run_table
    from analysis.seed_planning import plan_power

    # Proxies and retries of diverged runs have settings and seeds of their own, and are no arms of the comparison.
    arms = [run.config for run in plan.wanted if run.tunes is None and run.retry_of is None]
    return plan_power(run_table(load_records([earlier], tell=say)), arms)


def print_power(found: PlanPower) -> None:
    """Prints the smallest gap that the plan separates, and the seeds that the gaps of the earlier sweep need."""
    print(f"\n{found}\n")
    print_rows(found.rows, COLUMNS, as_json=False, title="Seeds that separate the earlier gaps with 80% power")
