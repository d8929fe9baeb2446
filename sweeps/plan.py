"""The frozen plan of a sweep, and how it grows when the sweep file changes.

A plan only ever gains runs: a run that was started keeps its name and its place, whether or not the file still asks for
it. `folder.py` says where the plan lies.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PLAN_VERSION = 1


class PlannedRun(BaseModel):
    """One run: its resolved config and what it will cost. `name` is also the name of its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    config_id: str
    images: int = Field(description="what the run will have seen: train.images in whole batches")
    params_total: int
    params_active: int
    flops_per_image: int = Field(description="one forward pass over all tokens")
    train_flops_per_image: int
    in_spec: bool = Field(True, description="False: started under an earlier version of the sweep file")
    config: dict[str, Any]

    @property
    def train_flops(self) -> int:
        """FLOPs of the whole training."""
        return self.images * self.train_flops_per_image


class Plan(BaseModel):
    """`plan.json`: what was asked for and the runs it came to, in the order of execution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = PLAN_VERSION
    sweep: str = Field(description="name of the sweep; the W&B group of its runs")
    spec: dict[str, Any] = Field(description="the sweep file")
    overrides: list[str] = Field(description="KEY=VALUE given on the command line over the file")
    num_merged: int = Field(description="combinations left out because another one has the same config")
    runs: list[PlannedRun]

    @property
    def wanted(self) -> list[PlannedRun]:
        """The runs that the sweep file asks for now."""
        return [run for run in self.runs if run.in_spec]


def extend(frozen: Plan, asked: Plan, started: Collection[str]) -> Plan:
    """`asked` with what `frozen` already fixed: names are kept, and so are the runs called `started`.

    A run of `frozen` that the file no longer asks for stays in the plan if it was started, and is not continued. A run
    asked for again takes the new settings that its config id does not cover (where it logs, how it is laid out).
    """
    names = {run.config_id: run.name for run in frozen.runs}
    kept = [run.model_copy(update={"name": names.get(run.config_id, run.name)}) for run in asked.runs]
    asked_ids = {run.config_id for run in asked.runs}
    retired = [
        run.model_copy(update={"in_spec": False})
        for run in frozen.runs
        if run.config_id not in asked_ids and run.name in started
    ]
    return asked.model_copy(update={"runs": kept + retired})
