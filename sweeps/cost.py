"""What a plan takes before it is spent: memory of a process and time of every run, and how far off that was afterwards.

Memory is arithmetic (`experiments/config/memory.py`); time is training FLOPs over the FLOP/s of a place, measured here
(`calibration.py`) or assumed for an accelerator of the table (`devices.py`). Training only: evaluation, starting and
saving come on top. Whether a plan fits, and what would, is in `fit.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from experiments.config.activations import working_bytes
from experiments.config.budget import recomputed_flops_per_image
from experiments.config.memory import GIB, Memory, memory
from experiments.config.schema import RunConfig
from experiments.errors import RecordError
from experiments.records.layout import RunDir
from sweeps.calibration import SpeedPoint, interpolate
from sweeps.devices import UTILISATION, Device, accelerator_memory_gib, find_device, host_memory_gib
from sweeps.folder import SweepFolder
from sweeps.plan import Estimate, Plan, PlannedRun
from sweeps.progress import schedule_seconds

UNKNOWN_SPEED = "not calibrated"
MAX_DEVICES = 4096
"""More than this is not proposed."""
DEVICES_PER_NODE = 8
"""As the makers build them (DGX and HGX systems)."""


@dataclass(frozen=True)
class Place:
    """Where runs are meant to go. Either `points` were measured, or `peak` FLOP/s are reached in part, or neither."""

    name: str
    memory_gib: float
    """For one process."""
    on_accelerator: bool
    max_world: int
    """Processes that one run may have, each with that memory."""
    points: tuple[SpeedPoint, ...] = ()
    peak_flops_per_second: float | None = None
    utilisation: float = UTILISATION
    device: Device | None = None
    """Of the table."""
    devices_per_node: int = DEVICES_PER_NODE

    def needed_gib(self, memory_gib: float, world: int) -> float:
        """What a run of `world` processes needs of `memory_gib`, which is what one of them takes.

        Every accelerator holds one process; on a CPU the processes of a run share the memory.
        """
        return memory_gib * (1 if self.on_accelerator else world)

    def has_room(self, memory_gib: float, world: int) -> bool:
        """Whether there are the accelerators and the memory for a run of `world` processes of `memory_gib` each."""
        too_many = self.on_accelerator and world > self.max_world
        return not too_many and self.needed_gib(memory_gib, world) <= self.memory_gib

    def seconds(self, run: PlannedRun, config: RunConfig) -> float | None:
        """Of the whole training; None where nothing is known of the speed. Processes are taken to share evenly.

        What was measured knows of activation checkpointing; of a device, the utilisation counts what is computed again.
        """
        if self.points:
            return run.train_flops / (interpolate(self.points, run.train_flops_per_image) * config.parallel.world)
        speed, again = self.assumed_flops_per_second(config), run.images * recomputed_flops_per_image(config)
        return None if speed is None else (run.train_flops + again) / (speed * config.parallel.world)

    def basis(self, config: RunConfig) -> str:
        """Where the seconds come from, in words."""
        if self.points:
            return f"{len(self.points)} calibration(s) on this machine"
        if self.peak_flops_per_second is None:
            return UNKNOWN_SPEED
        if working_bytes(config, on_accelerator=True) != 2:
            return f"{self.name}: its peak is of bf16, the run is fp32"
        return f"{self.name} at {self.utilisation:.0%} of {self.peak_flops_per_second / 1e12:g} TFLOP/s (assumed)"

    def assumed_flops_per_second(self, config: RunConfig) -> float | None:
        """Of one device of the table. None elsewhere, and in fp32, of which a bf16 peak says nothing."""
        if self.peak_flops_per_second is None or working_bytes(config, on_accelerator=True) != 2:
            return None
        return self.utilisation * self.peak_flops_per_second


def table_device(
    name: str, utilisation: float = UTILISATION, max_world: int = MAX_DEVICES, devices_per_node: int = DEVICES_PER_NODE
) -> Place:
    """As many accelerators of the table as it takes. Raises `SpecError` for a name that is not in it."""
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


def this_machine(num_slots: int = 1, num_accelerators: int = 0, points: Sequence[SpeedPoint] = ()) -> Place:
    """The accelerators of this machine, or its memory shared evenly by `num_slots` runs at a time."""
    accelerator = accelerator_memory_gib() if num_accelerators else None
    if accelerator is not None:
        share = max(1, -(-num_slots // num_accelerators))  # several runs on one accelerator
        return Place("an accelerator of this machine", accelerator / share, True, num_accelerators, tuple(points))
    who = "this machine" if num_slots == 1 else f"each of {num_slots} runs at a time on this machine"
    return Place(who, host_memory_gib() / num_slots, False, 1, tuple(points))


def estimated(plan: Plan, place: Place) -> Plan:
    """`plan` with an `Estimate` at every run, in the layout of its config; to be frozen with it."""
    known: dict[Hashable, Memory] = {}
    runs = []
    for run in plan.runs:
        config = RunConfig.model_validate(run.config)
        key = _what_memory_depends_on(config)
        if key not in known:
            known[key] = memory(config, place.on_accelerator)
        runs.append(run.model_copy(update={"estimate": _estimate(run, config, known[key], place)}))
    return plan.model_copy(update={"runs": runs})


def _estimate(run: PlannedRun, config: RunConfig, held: Memory, place: Place) -> Estimate:
    is_elsewhere = bool(place.points) and not place.has_room(held.peak_gib, config.parallel.world)
    return Estimate(
        memory_gib=held.peak_gib,
        host_memory_gib=held.host_peak / GIB if place.on_accelerator else None,
        seconds=None if is_elsewhere else place.seconds(run, config),
        basis=f"does not fit {place.name}, which was timed" if is_elsewhere else place.basis(config),
    )


def _what_memory_depends_on(config: RunConfig) -> Hashable:
    """Not the seed, the rates and the number of images, in which the runs of a sweep differ most."""
    train = config.train
    passes = (train.batch_images, train.accumulation, train.precision, train.mask_ratio, train.implementation)
    states = (config.optim.name, config.optim.momentum > 0, config.eval.images)
    return (config.model, config.routing, config.data, config.parallel, passes, states, config.wandb.mode == "disabled")


@dataclass(frozen=True)
class Total:
    """A whole plan. Seconds are None where one run's are."""

    num_runs: int
    images: int
    train_flops: int
    memory_gib: float | None
    """Of the largest process."""
    device_seconds: float | None
    """Seconds times processes, over all runs."""
    seconds: float | None
    """Until the last run ends, `num_slots` at a time in the order of the plan."""


def total(plan: Plan, num_slots: int = 1) -> Total:
    """Sums over the runs that the sweep file asks for now; estimates come from `estimated`."""
    runs = plan.wanted
    estimates = [run.estimate for run in runs if run.estimate is not None]
    known = [one.seconds for one in estimates if one.seconds is not None]
    complete = len(known) == len(runs)
    return Total(
        num_runs=len(runs),
        images=sum(run.images for run in runs),
        train_flops=sum(run.train_flops for run in runs),
        memory_gib=max((one.memory_gib for one in estimates), default=None),
        device_seconds=sum(s * _world(run) for s, run in zip(known, runs, strict=True)) if complete else None,
        seconds=schedule_seconds(known, 1.0, num_slots) if complete else None,
    )


@dataclass(frozen=True)
class EstimateError:
    """One finished run: measured over estimated, minus 1. None where one of the two is missing."""

    name: str
    seconds_estimated: float | None
    seconds_measured: float | None
    memory_gib_estimated: float
    memory_gib_measured: float | None

    @property
    def seconds_error(self) -> float | None:
        """Positive: the run took longer than was said."""
        return _error(self.seconds_measured, self.seconds_estimated)

    @property
    def memory_error(self) -> float | None:
        """Positive: the run took more than was said."""
        return _error(self.memory_gib_measured, self.memory_gib_estimated)


def errors_of(folder: SweepFolder) -> list[EstimateError]:
    """Estimate against measurement for every finished run of a frozen plan that carries an estimate."""
    plan = folder.read_plan()
    rows = [_error_of(run, folder.run_dir(run)) for run in (plan.runs if plan is not None else [])]
    return [row for row in rows if row is not None]


def _error_of(run: PlannedRun, run_dir: RunDir) -> EstimateError | None:
    try:
        status, step = (run_dir.read_status() if run.estimate is not None else None), run_dir.last_step() or {}
    except RecordError:  # `read_progress` says it of the run
        return None
    if run.estimate is None or status is None or status.state != "done":
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


def _world(run: PlannedRun) -> int:
    return int(run.config["parallel"]["world"])
