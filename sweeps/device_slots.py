"""Decides how many runs go at once on this machine, and gives each accelerators or a group of cores, without torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from experiments.errors import ConfigError


@dataclass(frozen=True)
class Slot:
    """The part of the machine that one run gets.

    `cores` are the cores that the run is pinned to, empty where it is not pinned; `accelerators` are ids of devices.
    """

    num_threads: int
    cores: tuple[int, ...] = ()
    accelerators: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that a run in this slot gets in addition to ours."""
        own = {"OMP_NUM_THREADS": str(self.num_threads)}
        if self.accelerators:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(self.accelerators)
        return own

    def pin(self) -> None:
        """Restricts this process, and what it starts, to the cores of the slot."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)


def choose_slots(
    num_runs: int,
    asked: int | None = None,
    cores_per_run: int | None = None,
    runs_per_accelerator: int = 1,
    processes_per_run: int = 1,
) -> tuple[Slot, ...]:
    """Returns `asked` slots, or by default as many as the accelerators or cores allow, but never more than runs.

    Where there are accelerators each run gets `processes_per_run` of them, which `runs_per_accelerator` runs share.
    Elsewhere each run gets `cores_per_run` cores of its own, by default an even share. Raises `ConfigError` where that
    is more than the machine has.
    """
    accelerators, cores = visible_accelerators(), visible_cores()
    if cores_per_run is not None and cores_per_run > len(cores):
        raise ConfigError(
            f"--cores-per-run {cores_per_run} is more than the {len(cores)} cores here.", "Choose a smaller number."
        )
    if accelerators:
        return _on_accelerators(
            accelerators, len(cores), num_runs, asked, cores_per_run, runs_per_accelerator, processes_per_run
        )
    count = asked or len(cores) // (cores_per_run or processes_per_run)
    return _on_cores(cores, max(1, min(count, num_runs)), cores_per_run, processes_per_run)


def _on_cores(cores: tuple[int, ...], count: int, cores_per_run: int | None, processes: int) -> tuple[Slot, ...]:
    """Gives neighbouring cores to each slot; where there are not enough cores, all slots share all of them."""
    # Neighbouring cores usually share caches and memory, so a run's threads stay close to its data.
    size = cores_per_run or max(1, len(cores) // count)
    num_threads = max(1, size // processes)
    if size * count > len(cores):
        return (Slot(num_threads),) * count
    return tuple(Slot(num_threads, cores[size * slot : size * (slot + 1)]) for slot in range(count))


def _on_accelerators(
    accelerators: tuple[str, ...],
    num_cores: int,
    num_runs: int,
    asked: int | None,
    cores_per_run: int | None,
    runs_per_accelerator: int,
    processes: int,
) -> tuple[Slot, ...]:
    """Deals the accelerators out in turn, so that two runs share a device only when all devices are in use."""
    if processes > len(accelerators):
        raise ConfigError(
            f"parallel.world={processes} is more than the {len(accelerators)} accelerators here.",
            "Choose a smaller parallel.world.",
        )
    firsts = range(0, len(accelerators) - processes + 1, processes)
    groups = [accelerators[first : first + processes] for first in firsts]
    count = max(1, min(asked or len(groups) * runs_per_accelerator, num_runs))
    num_threads = max(1, (cores_per_run or num_cores // count) // processes)
    return tuple(Slot(num_threads, accelerators=groups[slot % len(groups)]) for slot in range(count))


def visible_cores() -> tuple[int, ...]:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def visible_accelerators() -> tuple[str, ...]:
    """Returns the ids of the CUDA devices that this process may use, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(device.strip() for device in visible.split(",") if device.strip() not in ("", "-1"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ()
    devices = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(index) for index in range(len(devices)))
