"""Where a number first stopped being finite: the layer that a user must look at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from experiments.data.loader import Batch
from experiments.training.validation import forward_loss


def first_nonfinite_layer(model: nn.Module, batch: Batch, patch_size: int) -> str:
    """The first module whose own weights, output or gradient is not finite, found by running the batch again."""
    bad = [name for name, parameter in model.named_parameters() if not _finite(parameter)]
    if bad:
        return f"the weights {bad[0]}"
    found: list[str] = []
    hooks = [
        module.register_forward_hook(_reporter(name, found))
        for name, module in model.named_modules()
        if name and not list(module.children())
    ]
    loss_B, output = forward_loss(model, batch, patch_size)
    for hook in hooks:
        hook.remove()
    if found:
        return f"the output of {found[0]}"
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss_B.mean() + output.auxiliary_loss, parameters, allow_unused=True)
    late_first = zip(reversed(names), reversed(gradients), strict=True)
    for name, gradient in late_first:
        if gradient is not None and not _finite(gradient):
            return f"the gradient of {name}"
    return "the loss"


def _reporter(name: str, found: list[str]) -> Any:
    def report(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if any(isinstance(tensor, Tensor) and not _finite(tensor) for tensor in tensors):
            found.append(name)

    return report


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
