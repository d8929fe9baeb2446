"""DeepSpeed, imported in one place so that it comes up the same everywhere and says nothing on stdout.

Everything of DeepSpeed that this project uses is named here. Without an accelerator it is told so, instead of searching
and warning. On a CPU the shared-memory communication op is turned off: the first process group would compile it for a
minute, and crash without a compiler; gloo does the same work.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.moe.sharded_moe import top1gating, top2gating, topkgating
from deepspeed.utils import logger as deepspeed_logger

__all__ = ["deepspeed", "deepspeed_logger", "dist", "get_accelerator", "top1gating", "top2gating", "topkgating"]

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
for _handler in deepspeed_logger.handlers:
    _handler.setStream(sys.stderr)
