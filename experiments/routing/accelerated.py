"""Where Triton's kernels take the place of plain operations: on accelerators that Triton knows.

Triton comes with torch's builds for accelerators and needs a C compiler on the machine. Without either the plain
operations do the work, slower. The kernels are in `kernels.py` and `experiments/models/kernels.py`, which are imported
only where they run.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DEVICES = {"cuda", "xpu"}
"""Types of devices, as torch calls them: NVIDIA's and AMD's, and Intel's."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def has_kernels(*tensors: Tensor) -> bool:
    """Whether kernels take these: all on such a device, of a type with float32 sums."""
    return all(x.device.type in DEVICES and x.dtype in TYPES for x in tensors) and triton_works()


@cache
def triton_works() -> bool:
    """Whether Triton is installed and finds a C compiler, which it looks for as here."""
    return find_spec("triton") is not None and has_compiler()


def has_compiler() -> bool:
    """Whether there is a C compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
