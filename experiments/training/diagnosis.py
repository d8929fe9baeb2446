"""Finds the layer in which a value first stopped being finite, so that the error can name it.

DeepSpeed does not change the weights when the gradient norm is not finite. Running the same images again therefore
reproduces the value in the same layer.

A router is a case of its own. It may answer weights that are not finite although its logits are (a division by zero in
a plugin, for example). No learning rate mends that, so the error names the router as the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.data.loader import Batch
from experiments.distributed.agreement import first_trouble
from experiments.errors import RunFailedError
from experiments.plugins.sources import is_plugin, named_plugin
from experiments.routing.contract import Assignment
from experiments.routing.router import Router
from experiments.training.objective import forward_loss


@dataclass(frozen=True)
class Cause:
    """Says where a value first stopped being finite, and what to do about it where that is not the learning rate."""

    where: str
    hint: str = ""


def nonfinite_cause(model: nn.Module, batches: Sequence[Batch], config: RunConfig, world: int) -> Cause:
    """Returns the first module over all processes whose weights, output or gradient is not finite.

    Collective. Every process needs equally many batches, and all take each step of the search or none does, since a
    layer may need the experts of other processes.
    """
    found = first_trouble(_bad_weights(model), world)
    for batch in batches:
        for search in (_bad_output, _bad_gradient):
            found = found or first_trouble(search(model, batch, config), world)
    return found or Cause("the loss")


def nonfinite_error(config: RunConfig, images_seen: int, cause: Cause, what: str) -> RunFailedError:
    """Returns the error that ends a run: `what` is the value that was found not finite."""
    if cause.hint:  # a router is at fault: a lower rate would not mend it, and the run did not diverge
        return RunFailedError(
            f"Not finite at a router after {images_seen:,} images: {cause.where} ({what}).", cause.hint
        )
    way_out = f"Lower optim.learning_rate={config.optim.learning_rate:g}, or lengthen optim.warmup_images."
    return RunFailedError(f"Not finite after {images_seen:,} images: {cause.where} ({what}).", way_out)


def _bad_weights(model: nn.Module) -> Cause | None:
    return next((Cause(f"the weights {name}") for name, p in model.named_parameters() if not _finite(p)), None)


@torch.no_grad()
def _bad_output(model: nn.Module, batch: Batch, config: RunConfig) -> Cause | None:
    causes: list[Cause] = []
    hooks = [module.register_forward_hook(_reporter(name, causes)) for name, module in _layers(model)]
    forward_loss(model, batch, config)
    for hook in hooks:
        hook.remove()
    return causes[0] if causes else None


def _bad_gradient(model: nn.Module, batch: Batch, config: RunConfig) -> Cause | None:
    """Returns the first parameter, in the order of the backward pass, whose gradient is not finite.

    Returns None with ZeRO-3, which gathers weights in hooks that this search would bypass.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return None
    loss_B, output = forward_loss(model, batch, config)
    gradients = torch.autograd.grad(loss_B.mean() + output.auxiliary_loss, parameters, allow_unused=True)
    # The backward pass starts at the last layers, and parameters are listed in the order of the forward pass.
    bad = [
        name for name, gradient in zip(names, gradients, strict=True) if gradient is not None and not _finite(gradient)
    ]
    if not bad:
        return None
    layer = model.get_submodule(bad[-1].rpartition(".")[0])
    # The experts of a layer come after its router in the list. Where their gradients are finite and the router's is
    # not, it was the router's own backward pass that made it so.
    hint = _plugin_hint(layer, "has no finite derivative") if isinstance(layer, Router) else ""
    return Cause(f"the gradient of {bad[-1]}", hint)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules whose output is looked at: routers as a whole, and elsewhere the modules without children."""
    routers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Router))
    for name, module in model.named_modules():
        is_leaf = name and not list(module.children()) and not name.startswith(routers)
        if isinstance(module, Router) or is_leaf:
            yield name, module


def _reporter(name: str, found: list[Cause]) -> Any:
    def report(module: nn.Module, inputs: Any, output: Any) -> None:
        if all(_finite(tensor) for tensor in _tensors(output)):
            return
        if isinstance(module, Router) and isinstance(output, Assignment) and _finite(inputs[0]):
            found.append(_router_cause(name, module, output))
        else:
            found.append(Cause(f"the output of {name}"))

    return report


def _router_cause(name: str, router: Router, assignment: Assignment) -> Cause:
    """Returns what of a router's answer is not finite, though its input is; `name` is the router's in the model."""
    where = f"the router of {name.rpartition('.')[0]}"
    if not _finite(assignment.logits_NE):
        return Cause(f"the logits of {where}, whose input is finite")
    loss = assignment.auxiliary_loss
    part = "weights of slots" if loss is None or _finite(loss) else "auxiliary loss"
    hint = _plugin_hint(router, "must answer finite weights and losses for all finite logits")
    return Cause(f"the {part} from {where}, whose logits are finite", hint)


def _plugin_hint(router: Router, demand: str) -> str:
    """Returns the way out where the router is a plugin's; an empty text where it is one of ours."""
    name = router.plugin
    return f"Correct {named_plugin('router', name)}, which {demand}." if name and is_plugin("router", name) else ""


def _tensors(output: Any) -> Iterable[Tensor]:
    """Returns the tensors in a layer's output, which is one tensor or a tuple, such as a router's assignment."""
    parts = output if isinstance(output, tuple) else [output]
    return (part for part in parts if isinstance(part, Tensor))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
