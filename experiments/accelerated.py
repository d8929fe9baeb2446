"""Decides where Triton kernels replace plain PyTorch operations: on accelerators that Triton supports.

Triton comes with torch's builds for accelerators and needs a C compiler on the machine. Without either the plain
operations do the same work more slowly. The kernels are in `layers/routed_kernels.py` and
`layers/block_kernels.py`, which are imported only where they run.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DEVICES = {"cuda", "xpu"}
"""Device types on which the kernels run: torch calls NVIDIA's and AMD's devices `cuda`, and Intel's `xpu`."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def has_kernels(*tensors: Tensor) -> bool:
    """Returns whether the kernels can take these tensors: all on a supported device and of a supported type."""
    return all(x.device.type in DEVICES and x.dtype in TYPES for x in tensors) and triton_works()


@cache
def triton_works() -> bool:
    """Returns whether Triton is installed and will find a C compiler; `has_compiler` looks where Triton looks."""
    return find_spec("triton") is not None and has_compiler()


def has_compiler() -> bool:
    """Returns whether this machine has a C compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
