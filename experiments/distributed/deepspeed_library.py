"""The one import of DeepSpeed, so that it is set up the same way everywhere and writes nothing to stdout.

Everything of DeepSpeed that this project uses is listed here. Without an accelerator DeepSpeed is told to use the CPU;
otherwise it would search for a device and warn. Its shared-memory communication op for CPUs is turned off: the first
process group would compile it for a minute, and crash without a compiler, while gloo does the same work.
"""

from __future__ import annotations

import os
import sys
from unittest.mock import patch

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.moe.layer import MoE
from deepspeed.moe.sharded_moe import _AllToAll as AllToAll
from deepspeed.moe.sharded_moe import top1gating, top2gating, topkgating
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as split_expert_groups
from deepspeed.runtime import compiler
from deepspeed.runtime.utils import all_gather_dp_groups
from deepspeed.utils import groups
from deepspeed.utils import logger as deepspeed_logger

__all__ = [
    "AllToAll", "CPU_Accelerator", "MoE", "all_gather_dp_groups", "deepspeed", "deepspeed_logger", "dist",
    "get_accelerator", "groups", "set_accelerator", "split_expert_groups", "top1gating", "top2gating", "topkgating",
]  # fmt: skip

# An engine imports DeepSpeed's Muon, which is not used here and compiles a function of its own. It is imported now,
# with that function as it is: torch's compiler takes more than a second to import.
with patch.object(compiler, "compile", lambda: lambda function: function):
    import deepspeed.runtime.zero.muon.muon_optimizer

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
for _handler in deepspeed_logger.handlers:
    _handler.setStream(sys.stderr)
