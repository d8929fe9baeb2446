"""Checks before anything is built that a run fits in memory, instead of letting its first step be killed.

The estimate (`experiments/config/memory.py`) was within 10% wherever it was measured. Only runs that are plainly too
large are refused: those that need more than `TOO_LARGE` times the available memory.
"""

from __future__ import annotations

import os

import psutil
import torch

from experiments.config.memory import GIB, memory
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.records.record_types import Precision

TOO_LARGE = 1.25


def require_room(config: RunConfig, precision: Precision) -> None:
    """Raises `ConfigError` where this process needs far more memory than its device, or its part of the host, has."""
    on_accelerator = torch.accelerator.is_available()
    train = config.train.model_copy(update={"precision": precision})
    needed = memory(config.model_copy(update={"train": train}), on_accelerator).peak
    there, where = _what_there_is(on_accelerator)
    if needed > TOO_LARGE * there:
        raise ConfigError(
            f"each of parallel.world={config.parallel.world} process(es) takes {needed / GIB:,.1f} GiB, and {where} "
            f"has {there / GIB:,.1f}.",
            "Find a layout that fits with: ecdit plan --search (and the same settings).",
        )


def _what_there_is(on_accelerator: bool) -> tuple[int, str]:
    """Returns the bytes available to one process, and a description of where they are."""
    if on_accelerator:
        # The free memory is not asked for: every process would begin to use the first accelerator for that.
        return int(torch.get_device_module().get_device_properties().total_memory), "an accelerator here"
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    where = "this machine" if neighbours == 1 else f"each of {neighbours} processes on this machine"
    return psutil.virtual_memory().total // neighbours, where
