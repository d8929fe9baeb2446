"""Finds the layer in which a value first stopped being finite, so that the error can name it.

DeepSpeed does not change the weights when the gradient norm is not finite. Running the same images again therefore
reproduces the value in the same layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.data.loader import Batch
from experiments.distributed.agreement import first_trouble
from experiments.errors import RunFailedError
from experiments.training.objective import forward_loss


def nonfinite_layer(model: nn.Module, batches: Sequence[Batch], patch_size: int, world: int) -> str:
    """Returns the first module over all processes whose weights, output or gradient is not finite.

    Collective. Every process needs equally many batches, and all take each step of the search or none does, since a
    layer may need the experts of other processes.
    """
    found = first_trouble(_bad_weights(model), world)
    for batch in batches:
        for search in (_bad_output, _bad_gradient):
            found = found or first_trouble(search(model, batch, patch_size), world)
    return found or "the loss"


def nonfinite_error(config: RunConfig, images_seen: int, where: str, what: str) -> RunFailedError:
    """Returns the error that ends a run: `where` is the layer, `what` the value that was found not finite."""
    return RunFailedError(
        f"Not finite after {images_seen:,} images: {where} ({what}).",
        f"Lower optim.learning_rate={config.optim.learning_rate:g}, or lengthen optim.warmup_images.",
    )


def _bad_weights(model: nn.Module) -> str | None:
    return next((f"the weights {name}" for name, p in model.named_parameters() if not _finite(p)), None)


@torch.no_grad()
def _bad_output(model: nn.Module, batch: Batch, patch_size: int) -> str | None:
    outputs: list[str] = []
    hooks = [module.register_forward_hook(_reporter(name, outputs)) for name, module in _leaves(model)]
    forward_loss(model, batch, patch_size)
    for hook in hooks:
        hook.remove()
    return f"the output of {outputs[0]}" if outputs else None


def _bad_gradient(model: nn.Module, batch: Batch, patch_size: int) -> str | None:
    """Returns the first parameter, in the order of the backward pass, whose gradient is not finite.

    Returns None with ZeRO-3, which gathers weights in hooks that this search would bypass.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return None
    loss_B, output = forward_loss(model, batch, patch_size)
    gradients = torch.autograd.grad(loss_B.mean() + output.auxiliary_loss, parameters, allow_unused=True)
    # The backward pass starts at the last layers, and parameters are listed in the order of the forward pass.
    bad = [
        name for name, gradient in zip(names, gradients, strict=True) if gradient is not None and not _finite(gradient)
    ]
    return f"the gradient of {bad[-1]}" if bad else None


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if name and not list(module.children()))


def _reporter(name: str, found: list[str]) -> Any:
    def report(module: nn.Module, inputs: Any, output: Any) -> None:
        if not all(_finite(tensor) for tensor in _tensors(output)):
            found.append(name)

    return report


def _tensors(output: Any) -> Iterable[Tensor]:
    """Returns the tensors in a layer's output, which is one tensor or a tuple, such as a router's assignment."""
    parts = output if isinstance(output, tuple) else [output]
    return (part for part in parts if isinstance(part, Tensor))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
