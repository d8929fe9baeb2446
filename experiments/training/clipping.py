"""Gradient norms for the cases in which DeepSpeed's own are wrong or slow.

With ZeRO-0 DeepSpeed clips by the norm of the gradients on one process, which leaves out the experts of other processes
and makes processes clip differently (its issue 8475). Here the norm is that of the whole model, as with ZeRO-1 to 3.
With ZeRO-1 and 2 on an accelerator DeepSpeed checks each gradient by itself for overflow and for its norm, with about
ten small kernels each, so that launches dominate (docs/benchmarks). Here a few kernels treat all gradients at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.distributed.deepspeed_library import dist, groups
from experiments.layers.expert_parallel import ExpertShare

EPSILON = 1e-6
"""The number that is added to the norm before it divides, as DeepSpeed does."""


def clip_before_steps(optimizer: torch.optim.Optimizer, clip_norm: float, share: ExpertShare) -> None:
    """Clips gradients to `clip_norm` before each step of `optimizer`, and stores the norm where the engine reads it.

    Where the norm is not finite the step changes no weights, as in DeepSpeed's sharded optimizers. Steps are collective
    where experts are spread over processes.
    """

    def before(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in stepping.param_groups for p in group["params"] if p.grad is not None]
        norm = _norm(parameters, share)
        stepping._global_grad_norm = found = float(norm)  # type: ignore[attr-defined]
        if not math.isfinite(found):
            # Optimizers skip parameters without a gradient, so this step changes nothing.
            for parameter in parameters:
                parameter.grad = None
            return
        excess = (norm + EPSILON) / clip_norm
        if excess > 1:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], float(excess))

    optimizer.register_step_pre_hook(before)


def _norm(parameters: list[torch.nn.Parameter], share: ExpertShare) -> Tensor:
    """Returns the norm of all gradients of the model; squares of experts' are summed over the expert-parallel group."""
    mine = [p.grad for p in parameters if getattr(p, "allreduce", True) and p.grad is not None]
    experts = [p.grad for p in parameters if not getattr(p, "allreduce", True) and p.grad is not None]
    total, experts_total = _sum_of_squares(mine), _sum_of_squares(experts)
    # Other gradients are the same on all processes after their all-reduce and are counted once. Each process of an
    # expert-parallel group holds other experts, whose squares are added.
    if share.count > 1:
        dist.all_reduce(experts_total, group=groups._get_expert_parallel_group(share.group_name))
    return (total + experts_total).sqrt()


def _sum_of_squares(
    gradients: list[Tensor], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Returns the sum of squares, computed in `dtype` or that of the gradients; 0 on `device` for none."""
    if not gradients:
        return torch.zeros((), dtype=dtype, device=device)
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)).square().sum()


def measure_gradients_at_once(optimizer: Any) -> None:
    """Replaces two methods of DeepSpeed's ZeRO-1 and 2 optimizer by ones with the same results in a few kernels."""
    optimizer.has_overflow_partitioned_grads_serial = partial(_has_overflow, optimizer)
    optimizer.get_grad_norm_direct = partial(_group_norm, optimizer)


def _has_overflow(optimizer: Any) -> Tensor:
    """Returns whether any gradient that this process reduced is not finite, bool [1]."""
    # The maximum norm is infinite or NaN exactly where some element is.
    groups_of_gradients = [optimizer.averaged_gradients[number] or [] for number in range(len(optimizer.bit16_groups))]
    gradients = [gradient for group in groups_of_gradients for gradient in group if gradient is not None]
    if not gradients:
        return torch.zeros(1, dtype=torch.bool, device=optimizer.device)
    return ~torch.isfinite(torch.stack(torch._foreach_norm(gradients, float("inf")))).all().view(1)


def _group_norm(optimizer: Any, gradients: Iterable[Tensor], params: Iterable[Tensor], norm_type: float = 2) -> Tensor:
    """Returns the norm of one parameter group over its processes, float32; -1 tells DeepSpeed that it is not finite."""
    assert norm_type == 2
    measured = [gradient.detach() for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    total = _sum_of_squares(measured, torch.float32, optimizer.device)
    dist.all_reduce(total, group=optimizer.dp_process_group)
    return torch.where(torch.isfinite(total), total.sqrt(), -1.0)
