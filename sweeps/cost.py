"""Estimates the memory and time of every run of a plan, and compares them with what was measured later.

Memory is that of one process, computed from the config (`experiments/config/memory.py`). Time is the training FLOPs
divided by the FLOP/s of a place, which were either measured on this machine (`calibration.py`) or assumed for an
accelerator of the table (`devices.py`). An estimate covers training only: evaluation, starting and saving come on top.
`layout_search.py` decides whether a plan fits, and which layout would.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from experiments.config.activations import working_bytes
from experiments.config.budget import recomputed_flops_per_image
from experiments.config.memory import GIB, Memory, memory
from experiments.config.schema import RunConfig
from experiments.errors import RecordError
from experiments.records.run_folder import RunDir
from sweeps.calibration import SpeedPoint, interpolate
from sweeps.cost_keys import memory_key
from sweeps.devices import UTILISATION, Device, accelerator_memory_gib, find_device, host_memory_gib
from sweeps.folder import SweepFolder
from sweeps.plan import CostEstimate, Plan, PlannedRun
from sweeps.progress import schedule_seconds

UNKNOWN_SPEED = "not calibrated"
MAX_DEVICES = 4096
"""The largest number of devices that a proposed layout may use."""
DEVICES_PER_NODE = 8
"""Accelerators in one node of the makers' own systems (DGX and HGX)."""


@dataclass(frozen=True)
class Place:
    """The machine or accelerators that runs are meant for: their memory, and what is known of their speed.

    The speed is measured (`points`), or assumed to be a share of the peak (`peak_flops_per_second`), or unknown.
    """

    name: str
    memory_gib: float
    """Memory that one process may use. On a CPU all processes of a run share it."""
    on_accelerator: bool
    max_world: int
    """The largest number of processes of one run; on accelerators each has `memory_gib` to itself."""
    points: tuple[SpeedPoint, ...] = ()
    peak_flops_per_second: float | None = None
    utilisation: float = UTILISATION
    device: Device | None = None
    """The row of the table of accelerators, for places that come from it."""
    devices_per_node: int = DEVICES_PER_NODE

    def needed_gib(self, memory_gib: float, world: int) -> float:
        """Returns the GiB to compare with `self.memory_gib` for a run of `world` processes that take `memory_gib` each.

        Every accelerator holds one process; on a CPU the processes of a run share the memory.
        """
        return memory_gib * (1 if self.on_accelerator else world)

    def has_room(self, memory_gib: float, world: int) -> bool:
        """Returns whether there is room for a run of `world` processes that take `memory_gib` each."""
        too_many = self.on_accelerator and world > self.max_world
        return not too_many and self.needed_gib(memory_gib, world) <= self.memory_gib

    def seconds(self, run: PlannedRun, config: RunConfig) -> float | None:
        """Returns the seconds of the whole training, or None where the speed is not known.

        Processes are taken to share the work evenly. A measured speed already contains the cost of activation
        checkpointing. An assumed utilisation is a share of all FLOPs that a device executes, so that the recomputed
        ones are added there.
        """
        if self.points:
            return run.train_flops / (interpolate(self.points, run.train_flops_per_image) * config.parallel.world)
        speed, again = self.assumed_flops_per_second(config), run.images * recomputed_flops_per_image(config)
        return None if speed is None else (run.train_flops + again) / (speed * config.parallel.world)

    def basis(self, config: RunConfig) -> str:
        """Says in words where the estimate of the seconds comes from."""
        if self.points:
            return f"{len(self.points)} calibration(s) on this machine"
        if self.peak_flops_per_second is None:
            return UNKNOWN_SPEED
        if working_bytes(config, on_accelerator=True) != 2:
            return f"{self.name}: its peak is of bf16, the run is fp32"
        return f"{self.name} at {self.utilisation:.0%} of {self.peak_flops_per_second / 1e12:g} TFLOP/s (assumed)"

    def assumed_flops_per_second(self, config: RunConfig) -> float | None:
        """Returns the FLOP/s that one device of the table is assumed to reach, or None.

        It is None for other places, and for runs in fp32, because the peaks of the table are those of bf16.
        """
        if self.peak_flops_per_second is None or working_bytes(config, on_accelerator=True) != 2:
            return None
        return self.utilisation * self.peak_flops_per_second


def table_device(
    name: str, utilisation: float = UTILISATION, max_world: int = MAX_DEVICES, devices_per_node: int = DEVICES_PER_NODE
) -> Place:
    """Returns a place of up to `max_world` accelerators of the table. Raises `SpecError` for an unknown name."""
    found, device = find_device(name)
    return Place(
        name=found,
        memory_gib=device.memory_gib,
        on_accelerator=True,
        max_world=max_world,
        peak_flops_per_second=device.peak_flops_per_second,
        utilisation=utilisation,
        device=device,
        devices_per_node=devices_per_node,
    )


def this_machine(
    num_slots: int = 1,
    num_accelerators: int = 0,
    points: Sequence[SpeedPoint] = (),
    runs_per_accelerator: int = 1,
) -> Place:
    """Returns a place for the accelerators of this machine, or for its memory shared by `num_slots` runs at a time.

    `runs_per_accelerator` is the largest number of runs that share the memory of one accelerator.
    """
    accelerator = accelerator_memory_gib() if num_accelerators else None
    if accelerator is not None:
        share = accelerator / runs_per_accelerator
        return Place("an accelerator of this machine", share, True, num_accelerators, tuple(points))
    who = "this machine" if num_slots == 1 else f"each of {num_slots} runs at a time on this machine"
    return Place(who, host_memory_gib() / num_slots, False, 1, tuple(points))


def estimated(plan: Plan, place: Place) -> Plan:
    """Returns `plan` with an `CostEstimate` at every run, for the layout of its config."""
    known: dict[Hashable, Memory] = {}
    runs = []
    for run in plan.runs:
        config = RunConfig.model_validate(run.config)
        key = memory_key(config)
        if key not in known:
            known[key] = memory(config, place.on_accelerator)
        runs.append(run.model_copy(update={"estimate": _estimate(run, config, known[key], place)}))
    return plan.model_copy(update={"runs": runs})


def _estimate(run: PlannedRun, config: RunConfig, held: Memory, place: Place) -> CostEstimate:
    is_elsewhere = bool(place.points) and not place.has_room(held.peak_gib, config.parallel.world)
    return CostEstimate(
        memory_gib=held.peak_gib,
        host_memory_gib=held.host_peak / GIB if place.on_accelerator else None,
        seconds=None if is_elsewhere else place.seconds(run, config),
        basis=f"does not fit {place.name}, which was timed" if is_elsewhere else place.basis(config),
    )


@dataclass(frozen=True)
class Total:
    """Sums over a whole plan. A number of seconds is None where that of a run is not known."""

    num_runs: int
    images: int
    train_flops: int
    """The FLOPs of all runs, each as if it trained alone."""
    train_flops_spent: int
    """The FLOPs that are spent where runs share a trunk, which is trained once."""
    memory_gib: float | None
    """Memory of the largest process."""
    device_seconds: float | None
    """Seconds times processes, summed over all runs."""
    seconds: float | None
    """Seconds until the last run ends, with `num_slots` runs at a time in the order of the plan."""


def total(plan: Plan, num_slots: int = 1) -> Total:
    """Sums over the runs that the sweep file asks for now. Their estimates come from `estimated`."""
    runs = plan.wanted
    estimates = [run.estimate for run in runs if run.estimate is not None]
    known = [seconds for run in runs if (seconds := run.seconds_spent) is not None]
    complete = len(known) == len(runs)
    return Total(
        num_runs=len(runs),
        images=sum(run.images for run in runs),
        train_flops=sum(run.train_flops for run in runs),
        train_flops_spent=sum(run.train_flops_spent for run in runs),
        memory_gib=max((one.memory_gib for one in estimates), default=None),
        device_seconds=sum(s * run.world for s, run in zip(known, runs, strict=True)) if complete else None,
        seconds=schedule_seconds(known, 1.0, num_slots) if complete else None,
    )


@dataclass(frozen=True)
class EstimateError:
    """The estimates and the measurements of one finished run. An error is None where one of the two is missing."""

    name: str
    seconds_estimated: float | None
    seconds_measured: float | None
    memory_gib_estimated: float
    memory_gib_measured: float | None

    @property
    def seconds_error(self) -> float | None:
        """Returns measured over estimated seconds, minus 1; it is positive where the run took longer than estimated."""
        return _error(self.seconds_measured, self.seconds_estimated)

    @property
    def memory_error(self) -> float | None:
        """Returns measured over estimated memory, minus 1; it is positive where the run took more than estimated."""
        return _error(self.memory_gib_measured, self.memory_gib_estimated)


def errors_of(folder: SweepFolder, plan: Plan | None) -> list[EstimateError]:
    """Compares estimate and measurement for every finished run of the frozen `plan` that carries an estimate."""
    rows = [_error_of(run, folder.run_dir(run)) for run in (plan.runs if plan is not None else [])]
    return [row for row in rows if row is not None]


def _error_of(run: PlannedRun, run_dir: RunDir) -> EstimateError | None:
    if run.estimate is None:
        return None
    try:
        status, step = run_dir.read_status(), run_dir.last_step() or {}
    except RecordError:  # `read_progress` reports the damaged record
        return None
    if status is None or status.state != "done":
        return None
    return EstimateError(
        name=run.name,
        seconds_estimated=run.estimate.seconds,
        seconds_measured=step.get("seconds"),
        memory_gib_estimated=run.estimate.memory_gib,
        memory_gib_measured=status.peak_memory_gib,
    )


def _error(measured: float | None, estimated_value: float | None) -> float | None:
    return measured / estimated_value - 1 if measured is not None and estimated_value else None
