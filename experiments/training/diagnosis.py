"""Where a number first stopped being finite: the layer that a user must look at.

DeepSpeed leaves the weights alone when the gradient norm is not finite, so running the same images again meets the same
number at the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.data.loader import Batch
from experiments.errors import RunFailedError
from experiments.training.agreement import first_trouble
from experiments.training.objective import forward_loss


def nonfinite_layer(model: nn.Module, batches: Sequence[Batch], patch_size: int, world: int) -> str:
    """The first module, over all processes, whose weights, output or gradient is not finite.

    Collective, with as many batches on every process: each step of the search is taken by all or by none, since a layer
    may need the experts of others.
    """
    found = first_trouble(_bad_weights(model), world)
    for batch in batches:
        for search in (_bad_output, _bad_gradient):
            found = found or first_trouble(search(model, batch, patch_size), world)
    return found or "the loss"


def nonfinite_error(config: RunConfig, images_seen: int, where: str, what: str) -> RunFailedError:
    """The line that ends a run: `where` is the layer, `what` the number that was looked at."""
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
    """With ZeRO-3 weights are gathered by hooks that this search would miss, so there the layer stays unnamed."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return None
    loss_B, output = forward_loss(model, batch, patch_size)
    gradients = torch.autograd.grad(loss_B.mean() + output.auxiliary_loss, parameters, allow_unused=True)
    # Backward meets the last layers first, and parameters are named in the order of the forward pass.
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
    """A layer answers a tensor, or several: a router its assignment."""
    parts = output if isinstance(output, tuple) else [output]
    return (part for part in parts if isinstance(part, Tensor))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
