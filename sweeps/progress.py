"""Reads the state of each run of a sweep from its folder, and estimates how long the rest will take.

A folder is believed only as far as it can be checked: a run whose status is `running` while its process is gone counts
as interrupted. How this is shown is left to the command line.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from experiments.errors import RecordError, SpecError
from experiments.records.divergence import diverged_at, said_diverged
from experiments.records.lock_file import STALE_SECONDS, holder
from experiments.records.provenance import host_name
from experiments.records.record_types import EvalRow, State, Status
from experiments.records.run_folder import RunDir, Skipped, find_runs
from experiments.records.strict_reading import last_rows
from sweeps.folder import SweepFolder
from sweeps.plan import Plan, PlannedRun
from sweeps.trunks import is_waiting


@dataclass(frozen=True)
class RunProgress:
    """The state of one run, read from its folder. Fields are None where the folder does not tell them.

    `heartbeat` is in seconds since the epoch.
    """

    name: str
    state: State
    images_seen: int = 0
    images_total: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    heartbeat: float | None = None
    reason: str | None = None
    host: str | None = None
    """The host where the process of the run runs or ran."""
    waits_for: str | None = None
    """The run from whose checkpoint this one will continue, as long as that is missing."""
    diverged_at: int | None = None
    """The images seen when the loss or the weights were not finite any more, for a run that failed so."""
    in_spec: bool = True
    """False for a run of a frozen plan that the sweep file does not ask for any more, which no sweep continues."""

    @property
    def is_over(self) -> bool:
        """Returns whether no sweep goes on with the run by itself, because it has ended or will not be started."""
        is_orphan = self.state == "planned" and self.reason is not None
        is_retired = not self.in_spec and self.state != "running"
        return self.state in ("done", "failed") or is_orphan or is_retired

    @property
    def seconds_left(self) -> float | None:
        """Returns the seconds left at the rate of the last row; None when the run is not running or has no rate yet."""
        if self.state != "running" or not self.images_per_second or self.images_total is None:
            return None
        return (self.images_total - self.images_seen) / self.images_per_second

    @property
    def heartbeat_age_seconds(self) -> float | None:
        """Returns the seconds since the last heartbeat."""
        return None if self.heartbeat is None else max(0.0, time.time() - self.heartbeat)


@dataclass(frozen=True)
class Event:
    """Something that happened to a run and that its state does not show, such as a retry."""

    name: str
    text: str


@dataclass(frozen=True)
class SweepSnapshot:
    """The state of a whole sweep at one moment. `events` are those since the last snapshot.

    `seconds_left` is None before anything was measured.
    """

    runs: Sequence[RunProgress]
    seconds: float = 0.0
    seconds_left: float | None = None
    stopping: bool = False
    events: Sequence[Event] = ()
    is_tuning: bool = False
    """True while the runs of the sweep itself are not planned yet, because its arms are still being tuned."""
    plan: Plan | None = None
    """The frozen plan, where the snapshot was read from a folder that has one."""
    left_out: Skipped = field(default_factory=list)
    """Folders that look like runs, and plans, which could not be read: where they are, and why."""

    @property
    def num_by_state(self) -> Counter[State]:
        """Returns the number of runs in each state."""
        return Counter(run.state for run in self.runs)

    @property
    def images_seen(self) -> int:
        """Returns the images that all runs together have seen."""
        return sum(run.images_seen for run in self.runs)

    @property
    def images_total(self) -> int:
        """Returns the images that the runs are to see in total, over the runs whose total is known."""
        return sum(run.images_total or 0 for run in self.runs)


def read_progress(run: RunDir, images_total: int | None = None, evaluations: bool = True) -> RunProgress:
    """Reads the state of `run`. A folder whose status cannot be read counts as failed, and says why.

    `images_total` is shown before the run has started. `evaluations=False` skips reading `val_loss`, which takes
    longer.
    """
    name = run.path.name
    try:
        status = run.read_status()
    except RecordError as error:
        return RunProgress(name, "failed", images_total=images_total, reason=str(run.newer_version() or error))
    if status is None:
        missing = run.missing_records()
        return RunProgress(name, "planned" if missing is None else "failed", images_total=images_total, reason=missing)
    gone = status.state == "running" and not is_alive(run, status)
    diverged = diverged_at(status)
    reason = "its process is gone" if gone else status.reason if diverged is None else said_diverged(status)
    try:
        step, val_loss = run.last_step() or {}, last_val_loss(run) if evaluations else None
    except RecordError as error:
        step, val_loss, reason = {}, None, reason or str(error)
    return RunProgress(
        name=name,
        state="interrupted" if gone else status.state,
        images_seen=status.images_seen,
        images_total=status.images_total,
        loss=step.get("loss"),
        val_loss=val_loss,
        images_per_second=step.get("images_per_second"),
        seconds=step.get("seconds"),
        heartbeat=status.heartbeat,
        reason=reason,
        host=status.host,
        diverged_at=diverged,
    )


def frozen_names(folder: SweepFolder) -> dict[str, str]:
    """Returns the names of the runs of the frozen plan by their config ids; a run keeps the name that it began with."""
    frozen = folder.read_plan()
    return {} if frozen is None else {run.config_id: run.name for run in frozen.runs}


def ending_of(folder: SweepFolder, run: PlannedRun, names: Mapping[str, str]) -> RunProgress | None:
    """Returns how `run` ended, or None where it has not. `names` are those of `frozen_names`."""
    if run.config_id not in names:
        return None
    progress = read_progress(folder.run_dir(run.model_copy(update={"name": names[run.config_id]})))
    return progress if progress.state in ("done", "failed") else None


def read_sweep(path: Path) -> SweepSnapshot:
    """Reads all runs of a sweep folder, planned ones included, or of any other folder that holds runs.

    Runs on which the arms of the sweep are tuned come first, under names that begin with `tuning/`. Where the plan
    cannot be read, the result holds the runs that are there, and lists the plan in `left_out`.
    """
    folder, left_out = SweepFolder(path), Skipped()
    try:
        plan = folder.read_plan(is_executed=False)
    except SpecError as error:
        plan = None
        left_out.append((str(folder.plan_json), error.message))
    proxies = _read_proxies(folder, left_out)
    if plan is None and not proxies:
        return SweepSnapshot([read_progress(run) for run in find_runs(path, skipped=left_out)], left_out=left_out)
    runs = [] if plan is None else _read_plan(folder, plan)
    return SweepSnapshot([*proxies, *runs], is_tuning=plan is None, plan=plan, left_out=left_out)


def _read_proxies(folder: SweepFolder, left_out: Skipped) -> list[RunProgress]:
    """Reads the runs on which arms are tuned; there are none in most sweeps."""
    try:
        plan = folder.tuning.read_plan(is_executed=False)
    except SpecError as error:
        left_out.append((str(folder.tuning.plan_json), error.message))
        return []
    runs = [] if plan is None else _read_plan(folder.tuning, plan)
    return [replace(run, name=f"{folder.tuning.path.name}/{run.name}") for run in runs]


def _read_plan(folder: SweepFolder, plan: Plan) -> list[RunProgress]:
    """Returns the state of every run of a plan, in its order."""
    by_name = {run.name: _read_planned(folder, run) for run in plan.runs}
    # A run is longer than the one it waits for. Where that one is not started either, both have the same reason.
    for run in sorted(by_name.values(), key=lambda run: run.images_total or 0):
        parent = by_name.get(run.waits_for or "")
        if parent is not None and parent.state == "planned" and parent.reason is not None:
            by_name[run.name] = replace(run, waits_for=None, reason=parent.reason)
    return list(by_name.values())


def _read_planned(folder: SweepFolder, run: PlannedRun) -> RunProgress:
    """Returns the state of a run of a plan; one that was not started may wait for the trunk of another run."""
    progress = replace(read_progress(folder.run_dir(run), run.images), in_spec=run.in_spec)
    if run.parent is None or not run.in_spec or progress.state != "planned" or not is_waiting(folder, run):
        return progress
    if read_progress(folder.run_dir_called(run.parent), evaluations=False).state in ("failed", "done"):
        return replace(progress, reason=why_not_started(folder, run.parent, run))
    return replace(progress, waits_for=run.parent)


def why_not_started(folder: SweepFolder, parent: str, run: PlannedRun) -> str:
    """Returns in one line why `run` cannot be started, where nobody trains `parent` any more."""
    progress, trunk = read_progress(folder.run_dir_called(parent), evaluations=False), f"{run.trunk_images:,}"
    if progress.state == "done":
        return (
            f"not started: {parent} is done, but its checkpoint after {trunk} images, from which this run continues, "
            f"is gone. Bring it back, or remove {folder.run_dir_called(parent).path}; the same command trains it again."
        )
    because = "" if progress.reason is None else f": {progress.reason}"
    state = "failed" if progress.state == "failed" else f"is {progress.state}"
    return f"not started: {parent} {state}, and its first {trunk} images are the trunk of this run{because}"


def last_val_loss(run: RunDir) -> float | None:
    """Returns the newest validation loss of the raw weights, as in all tables. Rows are in the order of their images.

    Raises `RecordError` where the file cannot be read.
    """
    for row in last_rows(run.evals, EvalRow, b'"val_loss"', anywhere=True):
        if (row.get("metric"), row.get("weights")) == ("val_loss", "raw") and "value" in row:
            return float(row["value"])
    return None


def is_alive(run: RunDir, status: Status) -> bool:
    """Returns whether the process that wrote `status` is still there; on another host a recent heartbeat counts."""
    found = holder(run.locks)
    dead = None if found is None else found.is_dead()
    if dead is not None:
        return not dead
    if status.pid is None or status.host != host_name():
        return time.time() - status.heartbeat < STALE_SECONDS
    try:
        process = psutil.Process(status.pid)
        # A process id may be used again: the process that wrote the heartbeat started before it.
        return not (process.status() == psutil.STATUS_ZOMBIE or process.create_time() > status.heartbeat + 1.0)
    except psutil.NoSuchProcess:
        return False


def schedule_seconds(work_left: Iterable[float], work_per_slot_second: float, num_slots: int) -> float:
    """Returns the seconds until the last run ends, if each next run goes to the first free slot."""
    slots = [0.0] * num_slots
    for work in work_left:
        heapq.heapreplace(slots, slots[0] + work / work_per_slot_second)
    return max(slots)
