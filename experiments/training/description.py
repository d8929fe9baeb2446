"""Builds `run.json` for a run that is about to start: its settings, its cost and the machine it runs on."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.config.budget import Budget
from experiments.config.identity import config_id, run_name
from experiments.config.schema import RunConfig
from experiments.plugins.runs import plugin_records
from experiments.records.provenance import git_commit, host_name, utc_now, versions
from experiments.records.record_types import Origin, ParentRecord, Precision, RunRecord
from experiments.training.engine import launched_world


def describe_run(
    config: RunConfig,
    precision: Precision,
    cost: Budget,
    command: Sequence[str],
    origin: Origin | None = None,
    parent: ParentRecord | None = None,
) -> RunRecord:
    """Returns the record of a first start; a resumed run keeps its own."""
    return RunRecord(
        **dict(origin or Origin()),
        config=config.model_dump(mode="json"),
        config_id=config_id(config),
        name=run_name(config),
        sweep=config.wandb.group,
        created_at=utc_now(),
        command=list(command),
        git_commit=git_commit(),
        versions=versions(),
        host=host_name(),
        device=device_name(),
        num_threads=torch.get_num_threads(),
        precision=precision,
        world=launched_world(),
        params_total=cost.params_total,
        params_active=cost.params_active,
        params_by_part=cost.params_by_part,
        flops_per_image=cost.flops_per_image,
        train_flops_per_image=cost.train_flops_per_image,
        plugins=plugin_records(config),
        parent=parent,
    )


def device_name() -> str:
    """Returns the name of the accelerator, or `cpu` with the name of the processor."""
    if torch.accelerator.is_available():
        return str(torch.get_device_module().get_device_name())
    return f"cpu: {torch.cpu.get_capabilities().get('cpu_name', platform.machine())}, {os.cpu_count()} cores"


def peak_memory_gib() -> float:
    """Returns the peak memory of this process so far: on the accelerator where there is one, otherwise on the host."""
    if torch.accelerator.is_available():
        return float(torch.accelerator.max_memory_reserved()) / 2**30
    status = Path("/proc/self/status")
    held = resident_peak_bytes(status.read_text()) if status.is_file() else None
    if held is None:  # a fallback on Linux, since ru_maxrss starts from the memory of the parent process
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held = largest if sys.platform == "darwin" else 1024 * largest  # bytes there, KiB elsewhere
    return held / 2**30


def resident_peak_bytes(status: str) -> int | None:
    """Parses the peak from the text of `/proc/self/status`; returns None where the kernel omits it, as gVisor does."""
    line = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return None if line is None else 1024 * int(line[1])
