"""The frozen plan of a sweep, and how it is extended when the sweep file changes.

A run that was started never leaves the plan: it keeps its name, its place and the estimate it was started with, whether
or not the file still asks for it. `folder.py` says where the plan is stored, `cost.py` how estimates are made and
checked.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from experiments.config.cooldown import cooldown_start, trunk_key
from experiments.config.schema import RunConfig
from experiments.records.record_types import Amount, Count, Origin, TunedSetting

PLAN_VERSION = 1
MAX_PLAN_BYTES = 2 * 2**30
"""The largest `plan.json` that is written and read. A sweep has at most 100,000 runs, and each takes about 3 KiB."""
MAX_NAME_BYTES = 255
"""The longest name that common file systems allow."""


def _as_folder_name(name: str) -> str:
    """Returns `name`. Raises `ValueError` where it does not name one folder inside another."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError("it should be the name of a folder")
    return name


FolderName = Annotated[str, AfterValidator(_as_folder_name)]


class CostEstimate(BaseModel):
    """The memory and time that a run is expected to take, estimated before it starts, or None."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    memory_gib: Amount = Field(description="peak of one process, on the accelerator where there is one")
    host_memory_gib: Amount | None = Field(None, description="of one process while it saves, beside the accelerator")
    seconds: Amount | None = Field(
        None, description="training without evaluation, one run at a time, from the first image on"
    )
    basis: str = Field(description="where `seconds` comes from: a calibration, or an accelerator and its utilisation")


class PlannedRun(BaseModel):
    """One planned run: its resolved config and what it will cost. `name` is also the name of its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: FolderName
    config_id: str
    images: Count = Field(description="what the run will have seen: train.images in whole batches")
    params_total: Count
    params_active: Count
    flops_per_image: Count = Field(description="one forward pass over all tokens")
    train_flops_per_image: Count
    in_spec: bool = Field(True, description="False: started under an earlier version of the sweep file")
    train_flops_budget: Amount | None = Field(None, description="iso-FLOP: what the run was to spend")
    matched_run: str | None = Field(None, description="iso-activation: the run that this one is matched to")
    matched_params_active: Count | None = Field(None, description="activated parameters of that run")
    parent: FolderName | None = Field(None, description="shorter run from whose checkpoint this one continues")
    trunk_images: Count = Field(0, description="images of that checkpoint, which the parent trains")
    tuned: TunedSetting | None = Field(None, description="how a setting of the run was found; None: it was given")
    tunes: str | None = Field(None, description="of a proxy: the sweep for which it helps to tune a setting")
    retry_of: str | None = Field(None, description="the run that diverged, which this one repeats at a lower rate")
    estimate: CostEstimate | None = None
    config: dict[str, Any]

    @property
    def world(self) -> int:
        """Returns the number of processes that the config asks for."""
        return int(self.config["parallel"]["world"])

    @property
    def origin(self) -> Origin | None:
        """Returns what the record of the run is to keep about its place in the sweep, or None for nothing."""
        origin = Origin(tuned=self.tuned, tunes=self.tunes, retry_of=self.retry_of)
        return None if origin == Origin() else origin

    @property
    def train_flops(self) -> int:
        """Returns the FLOPs of the whole training, as of the run alone."""
        return self.images * self.train_flops_per_image

    @property
    def train_flops_spent(self) -> int:
        """Returns the FLOPs that this run itself spends, without those of the trunk that its parent has trained."""
        return (self.images - self.trunk_images) * self.train_flops_per_image

    @property
    def seconds_spent(self) -> float | None:
        """Returns the estimated seconds of the training that this run itself does, or None where they are not known."""
        known = None if self.estimate is None else self.estimate.seconds
        return known if known is None or not self.trunk_images else known * (1 - self.trunk_images / self.images)

    @property
    def train_flops_mismatch(self) -> float | None:
        """Returns the share by which the run spends more than its FLOP budget, because it trains on whole batches."""
        return None if self.train_flops_budget is None else self.train_flops / self.train_flops_budget - 1

    @property
    def params_active_mismatch(self) -> float | None:
        """Returns the share by which the run activates more parameters than the run that it is matched to."""
        return None if self.matched_params_active is None else self.params_active / self.matched_params_active - 1


class Plan(BaseModel):
    """The content of `plan.json`: what was asked for, and the resulting runs in the order of execution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = PLAN_VERSION
    sweep: str = Field(description="name of the sweep; the W&B group of its runs")
    spec: dict[str, Any] = Field(description="the sweep file")
    overrides: list[str] = Field(description="KEY=VALUE given on the command line over the file")
    num_merged: Count = Field(description="combinations left out because another one has the same config")
    runs: list[PlannedRun]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Raises `ValueError` where two runs share a name, and thus a folder, or a config id.

        It also raises it where a run would wait for another one that is no shorter run of the plan, perhaps for ever.
        """
        for what in ("name", "config_id"):
            most, times = Counter(getattr(run, what) for run in self.runs).most_common(1)[0] if self.runs else ("", 1)
            if times > 1:
                raise ValueError(f"{times} runs have the {what} {most}")
        images = {run.name: run.images for run in self.runs}
        for run in self.runs:
            parent_images = images.get(run.parent or "", 0)
            is_child = run.parent is not None or run.trunk_images > 0
            if is_child and not 0 < run.trunk_images < parent_images < run.images:
                raise ValueError(f"{run.name} continues from {run.parent}, which is no shorter run")
        return self

    @property
    def wanted(self) -> list[PlannedRun]:
        """Returns the runs that the sweep file asks for now."""
        return [run for run in self.runs if run.in_spec]


def extend(frozen: Plan, asked: Plan, started: Collection[str]) -> Plan:
    """Returns `asked` with what `frozen` has already fixed: names, and the places of the runs called `started`.

    Everything up to the last started run stays where it is; what comes after is ordered anew, the cheapest first. A run
    of `frozen` that the file no longer asks for stays in the plan if it was started, and is not continued. A run that
    is still asked for takes the new values of settings that its config id does not cover (where it logs, how it is laid
    out). The other runs of a family may get another parent, since the started ones stay what they are.
    """
    wanted = _named_as_before(frozen, asked)
    last = max((place for place, run in enumerate(frozen.runs) if run.name in started), default=-1)
    head: list[PlannedRun] = []
    for run in frozen.runs[: last + 1]:
        again = wanted.pop(run.config_id, None)
        if run.name in started:
            head.append(_continued(run, again))
        elif again is not None:
            head.append(again)
    return with_parents(asked.model_copy(update={"runs": head + list(wanted.values())}), started)


def _named_as_before(frozen: Plan, asked: Plan) -> dict[str, PlannedRun]:
    """Returns the runs of `asked` by config id; a new run whose name is taken gets all digits of its id in its name."""
    names = {run.config_id: run.name for run in frozen.runs}
    taken = set(names.values())
    named: dict[str, PlannedRun] = {}
    for run in asked.runs:
        name = names.get(run.config_id) or (long_name(run) if run.name in taken else run.name)
        named[run.config_id] = run if name == run.name else run.model_copy(update={"name": name})
    return named


def long_name(run: PlannedRun) -> str:
    """Returns the name of `run` with all 10 digits of the config id, instead of the usual 6."""
    return run.name.removesuffix(run.config_id[6:]) + run.config_id[6:]


def _continued(run: PlannedRun, again: PlannedRun | None) -> PlannedRun:
    """Returns a started run: marked as out of the spec, or as it is now asked for with the estimate of its start."""
    if again is None:
        return run.model_copy(update={"in_spec": False})
    kept = {"parent": run.parent, "trunk_images": run.trunk_images, "estimate": run.estimate or again.estimate}
    return again.model_copy(update=kept)


def with_parents(plan: Plan, started: Collection[str] = ()) -> Plan:
    """Returns `plan` in which every run names its parent, the shorter run that it continues from.

    Runs with `optim.schedule=wsd` that differ in their length alone are a family. The parent of each is the next
    shorter one. A run called in `started` keeps its parent while that is in the plan. A run that the sweep file no
    longer asks for becomes nobody's parent, because it is not trained any further.
    """
    families: dict[str, list[PlannedRun]] = {}
    for run in plan.wanted:
        if (key := trunk_key(run.config)) is not None:
            families.setdefault(key, []).append(run)
    parents: dict[str, PlannedRun] = {}
    for family in families.values():
        shorter: PlannedRun | None = None
        for _, group in itertools.groupby(sorted(family, key=lambda run: run.images), key=lambda run: run.images):
            equally_long = list(group)
            parents |= {run.name: shorter for run in equally_long if shorter is not None}
            shorter = equally_long[0]
    names = {run.name for run in plan.runs}
    fixed = {run.name for run in plan.runs if run.name in started and (run.parent is None or run.parent in names)}
    runs = [run if run.name in fixed else _child_of(parents.get(run.name), run) for run in plan.runs]
    return plan.model_copy(update={"runs": runs})


def _child_of(parent: PlannedRun | None, run: PlannedRun) -> PlannedRun:
    """Returns `run` as one that continues from `parent`, or as one that trains alone where there is no trunk."""
    start = 0 if parent is None else cooldown_start(RunConfig.model_validate(parent.config)) or 0
    name = parent.name if parent is not None and start else None
    return run.model_copy(update={"parent": name, "trunk_images": start})
