"""Accelerators that a plan can be priced on without having one, and what this machine has.

Peaks are of dense bf16 matmuls with fp32 sums, as the makers state them; datasheets that print twice as much count 2:4
sparsity. Memory is the makers' gigabytes (10^9 bytes), up to 7% less than what drivers show: the margin is wanted.
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

import psutil

from experiments.config.memory import GIB
from experiments.errors import SpecError, did_you_mean


class Device(NamedTuple):
    """One accelerator."""

    memory_gigabytes: float
    peak_bf16_teraflops: float

    @property
    def memory_gib(self) -> float:
        """Memory in GiB."""
        return self.memory_gigabytes * 1e9 / GIB

    @property
    def peak_flops_per_second(self) -> float:
        """Dense bf16."""
        return self.peak_bf16_teraflops * 1e12


# fmt: off
DEVICES: dict[str, Device] = {
    #                    GB   TFLOP/s
    "A100-40GB": Device( 40,   312.0),   # NVIDIA A100 datasheet: 624 with sparsity
    "A100-80GB": Device( 80,   312.0),   # NVIDIA A100 datasheet, SXM and PCIe
    "H100":      Device( 80,   989.4),   # NVIDIA H100 datasheet, SXM: 1,979 with sparsity
    "H200":      Device(141,   989.4),   # NVIDIA H200 datasheet, SXM: the compute of an H100
    "B200":      Device(180,  2250.0),   # NVIDIA HGX B200 datasheet, 1,000 W: 4.5 PFLOP/s with sparsity
    "L40S":      Device( 48,   362.05),  # NVIDIA L40S datasheet: 733 with sparsity
    "RTX-4090":  Device( 24,   165.2),   # NVIDIA Ada GPU architecture whitepaper, appendix A: bf16 with fp32 sums
    "MI300X":    Device(192,  1307.4),   # AMD Instinct MI300X datasheet: 2,614.9 with sparsity
}
# fmt: on

UTILISATION = 0.35
"""Share of the peak that training is assumed to reach (MFU). Published dense transformers reach 0.4 to 0.55, and a
public mixture of experts on the same code 0.35 where dense has 0.46 (nanochat). Widths below about 1,024 stay under it:
their matmuls do not fill the device. Give `--utilisation` what a run of yours has measured."""


def find_device(name: str) -> tuple[str, Device]:
    """The row called `name`, whatever its case and separators; a `SpecError` with the closest name."""
    wanted = _bare(name)
    for known, device in DEVICES.items():
        if _bare(known) == wanted:
            return known, device
    raise SpecError(f"--device {name!r} is not in the table.", did_you_mean(name, DEVICES))


def host_memory_gib() -> float:
    """Memory that this process may use: of the machine, or of its control group where that has less."""
    total = float(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _number_in(path)
        total = total if limit is None else min(total, limit)
    return total / GIB


def accelerator_memory_gib() -> float | None:
    """Of the smallest accelerator of this machine, found without torch; None on a CPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    mebibytes = [int(line) for line in listed.stdout.split() if line.isdigit()]
    return min(mebibytes) / 1024 if mebibytes else None


def _bare(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum()).removesuffix("gb")


def _number_in(path: str) -> float | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None
