"""The ZeRO stage of a run, where its setting is `auto`."""

from __future__ import annotations

from experiments.config.activations import FLOAT32, Precision, working_bytes
from experiments.config.schema import RunConfig


def resolved_stage(config: RunConfig, precision: Precision) -> int:
    """Returns the ZeRO stage of a run in this precision: `auto` is 0 for one process in fp32, and 1 for all others.

    One process has nothing to spread, and DeepSpeed's sharded optimizer would hold a second copy of all weights. In
    bf16 that copy is the fp32 one that mixed precision needs.
    """
    setting = config.parallel.zero_stage
    if setting != "auto":
        return setting
    return 0 if config.parallel.world == 1 and precision == "fp32" else 1


def planned_stage(config: RunConfig, on_accelerator: bool) -> int:
    """Returns the ZeRO stage that a run is planned with, in the precision that memory is estimated for."""
    return resolved_stage(config, "fp32" if working_bytes(config, on_accelerator) == FLOAT32 else "bf16")
