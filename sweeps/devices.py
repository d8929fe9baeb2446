"""The table of accelerators that a plan can be priced on without having one, and the memory of this machine.

Peaks are of dense bf16 matmuls with fp32 sums, as the makers state them; datasheets that print twice as much count 2:4
sparsity. Memory is the makers' gigabytes (10^9 bytes), up to 7% less than what drivers show; this difference is kept as
a margin. Bandwidths are peaks of one device in one direction, half of what datasheets call bidirectional. Inside a node
the bandwidth is that of all links of a device together; across nodes it is the device's share of the network cards in
the maker's own system.
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

import psutil

from experiments.config.memory import GIB
from experiments.errors import SpecError, did_you_mean


class Device(NamedTuple):
    """The memory, peak and bandwidths of one accelerator."""

    memory_gigabytes: float
    peak_bf16_teraflops: float
    node_gigabytes_per_second: float
    """Bandwidth to the other devices of its node, in one direction."""
    network_gigabytes_per_second: float | None
    """Bandwidth to other nodes, in one direction. None where no system of the maker fixes it."""

    @property
    def memory_gib(self) -> float:
        """Returns the memory in GiB."""
        return self.memory_gigabytes * 1e9 / GIB

    @property
    def peak_flops_per_second(self) -> float:
        """Returns the peak FLOP/s of dense bf16 matmuls."""
        return self.peak_bf16_teraflops * 1e12


# fmt: off
DEVICES: dict[str, Device] = {
    #                    GB   TFLOP/s  node  network
    "A100-40GB": Device( 40,   312.0,   300,    25),   # NVIDIA A100 datasheet: 624 with sparsity; DGX A100
    "A100-80GB": Device( 80,   312.0,   300,    25),   # NVIDIA A100 datasheet, SXM and PCIe; DGX A100
    "H100":      Device( 80,   989.4,   450,    50),   # NVIDIA H100 datasheet, SXM: 1,979 with sparsity; DGX H100
    "H200":      Device(141,   989.4,   450,    50),   # NVIDIA H200 datasheet, SXM: the compute of an H100; DGX H200
    "B200":      Device(180,  2250.0,   900,    50),   # NVIDIA HGX B200 datasheet, 1,000 W: 4.5 PFLOP/s with sparsity
    "L40S":      Device( 48,   362.05,   32,  None),   # NVIDIA L40S datasheet: 733 with sparsity; PCIe 4.0 x16
    "RTX-4090":  Device( 24,   165.2,    32,  None),   # NVIDIA Ada architecture whitepaper, appendix A; PCIe 4.0 x16
    "MI300X":    Device(192,  1307.4,   448,  None),   # AMD Instinct MI300X datasheet: 2,614.9 with sparsity; 7 links
}
# A100: NVLink 3, 600 GB/s both ways; DGX A100 datasheet: 8 x 200 Gb/s InfiniBand for 8 devices.
# H100, H200: NVLink 4, 900 GB/s both ways; DGX H100 and H200 datasheets: 8 x 400 Gb/s. B200: NVLink 5, 1,800 GB/s both
# ways; DGX B200 datasheet: 8 x 400 Gb/s. MI300X: seven Infinity Fabric links of 128 GB/s both ways.
# fmt: on

UTILISATION = 0.35
"""The share of the peak that training is assumed to reach (MFU).

Published dense transformers reach 0.4 to 0.55, and a public mixture of experts on the same code reaches 0.35 where
dense has 0.46 (nanochat). Models of a width below about 1,024 stay under it, because their matmuls do not fill the
device. Pass what a run of yours has measured as `--utilisation`.
"""


def find_device(name: str) -> tuple[str, Device]:
    """Returns the row called `name`, whatever its case and separators, with or without its memory (`h100-80gb`).

    Raises `SpecError` with the closest name where there is none.
    """
    wanted = _bare(name)
    for known, device in DEVICES.items():
        if wanted in (_bare(known), _bare(f"{known}-{device.memory_gigabytes:g}GB")):
            return known, device
    raise SpecError(f"--device {name!r} is not in the table.", did_you_mean(name, DEVICES))


def host_memory_gib() -> float:
    """Returns the memory that this process may use: that of the machine, or of its control group where that is less."""
    total = float(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _number_in(path)
        total = total if limit is None else min(total, limit)
    return total / GIB


def accelerator_memory_gib() -> float | None:
    """Returns the memory of the smallest accelerator here, found without torch; None without accelerators."""
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
