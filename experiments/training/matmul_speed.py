"""Measures the matmul throughput of this machine, to which the FLOPs per second of a run are compared.

The measurement is taken at the first start of a run, in its precision, on its device and with its threads: the fastest
of several products of two square matrices, 2 n^3 FLOPs each, where n doubles until a product takes a few milliseconds.
Utilisation relative to it is the share of what this process could do with large matmuls alone; it is not the peak of a
data sheet. `analysis.run_table` computes the utilisation.
"""

from __future__ import annotations

import time

import torch

from experiments.records.record_types import Precision

SMALLEST_SIDE = 256
LARGEST_SIDE = 8192
LONG_ENOUGH_SECONDS = 2e-3
NUM_REPETITIONS = 3


def matmul_flops_per_second(precision: Precision) -> float:
    """Returns FLOPs per second of one process. It takes under 0.1 s and changes no random state or peak memory."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side, speeds = SMALLEST_SIDE, [0.0]
    while True:
        # The product of two such matrices is the same matrix again, so no product overflows or becomes subnormal.
        seconds = _fastest(torch.full((side, side), 1 / side, device=device, dtype=dtype))
        speeds.append(2 * side**3 / seconds)
        if seconds > LONG_ENOUGH_SECONDS or side == LARGEST_SIDE:
            break
        side *= 2
    if device is not None and device.type != "cpu":  # or the matrices would count in the run's peak memory
        memory = torch.get_device_module()
        memory.empty_cache()
        memory.reset_peak_memory_stats()
    return max(speeds)


def _fastest(x_NN: torch.Tensor) -> float:
    """Returns the seconds of the fastest product; the first, which loads the kernel, does not count."""
    out_NN = x_NN @ x_NN
    durations = []
    for _ in range(NUM_REPETITIONS):
        _synchronize()
        before = time.perf_counter()
        torch.mm(x_NN, x_NN, out=out_NN)
        _synchronize()
        durations.append(time.perf_counter() - before)
    return min(durations)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
