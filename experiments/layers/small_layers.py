"""Small routed layers (8 wide, 4 experts) and their inputs, on which the properties of routers are tried.

Legend: as in `routing/contract.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.schema import RunConfig
from experiments.errors import EcditError
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.routing.contract import Assignment, RoutingContext

WIDTH, NUM_EXPERTS, NUM_IMAGES, NUM_TOKENS = 8, 4, 4, 16


class BrokenPropertyError(EcditError):
    """A property that the router does not have."""

    exit_code = 1


def small_config(width: int = WIDTH, **routing: Any) -> RunConfig:
    """Returns a config of one routed layer with these `routing` settings."""
    model = {"name": "nano", "width": width, "num_layers": 1, "sparse_layers": "all", "ffn_factor": 2.0}
    return RunConfig.model_validate({"model": model, "routing": routing})


def small_layer(**routing: Any) -> RoutedFeedForward:
    """Returns the layer of `small_config` with router weights far from 0: loads differ, and a capacity drops tokens.

    Biases of experts, where `routing` asks for them, are drawn too, because a forgotten bias of 0 would not show.
    """
    layer = build_feed_forward(small_config(**routing), 0)
    assert isinstance(layer, RoutedFeedForward)
    prefer(layer, "random")
    for name, parameter in layer.named_parameters():
        if name.split(".")[-1] in ("b_in_EF", "b_out_ED", "bias"):
            torch.nn.init.normal_(parameter)
    return layer


def prefer(layer: RoutedFeedForward, preference: str) -> None:
    """Makes the logits of all tokens `equal`, or `random` and far apart, where the router has weights."""
    weight_DE = getattr(layer.router, "weight_DE", None)
    if weight_DE is not None:
        (torch.nn.init.zeros_ if preference == "equal" else torch.nn.init.normal_)(weight_DE)


def small_tokens(num_images: int = NUM_IMAGES) -> Tensor:
    """Returns random tokens of some images, [B, T, D]."""
    return torch.randn(num_images, NUM_TOKENS, WIDTH)


def small_context(x_BTD: Tensor, num_dropped: int = 0) -> RoutingContext:
    """Returns the context of a layer alone, with random time and caption features.

    The first `num_dropped` images have no caption.
    """
    num_images, _, width = x_BTD.shape
    dropped_B = torch.arange(num_images) < num_dropped
    features = {name: torch.randn(num_images, width).to(x_BTD) for name in ("time_BD", "caption_BD")}
    return RoutingContext.of_a_layer_alone(x_BTD)._replace(dropped_B=dropped_B, **features)


def settle(layer: RoutedFeedForward, num_steps: int = 3) -> None:
    """Lets the router's state learn from some random batches, as training does after each step."""
    was_training = layer.training
    for _ in range(num_steps if layer.router.state is not None else 0):
        observed = assignment_of(layer.train(), small_tokens()).observed
        assert observed is not None, "a router with a state observes in training"
        assert layer.router.state is not None
        layer.router.state.update(observed)
    layer.train(was_training)


def assignment_of(layer: RoutedFeedForward, x_BTD: Tensor, context: RoutingContext | None = None) -> Assignment:
    """Returns the decision of the layer."""
    assignment = layer(x_BTD, context).assignment
    assert isinstance(assignment, Assignment), "a routed layer has an assignment"
    return assignment


def filled_slots(assignment: Assignment) -> Tensor:
    """Returns whether each slot holds a token, bool [M]."""
    if assignment.filled_M is not None:
        return assignment.filled_M
    return torch.ones_like(assignment.token_M, dtype=torch.bool)


def gradients(layer: RoutedFeedForward, x_BTD: Tensor, num_dropped: int = 0) -> dict[str, Tensor]:
    """Returns the gradients of a loss that reads every output and the auxiliary loss, by parameter and for `x`.

    The first `num_dropped` images have no caption.
    """
    x_BTD = x_BTD.clone().requires_grad_()
    context = RoutingContext.of_a_layer_alone(x_BTD)
    dropped_B = torch.arange(len(x_BTD), device=x_BTD.device) < num_dropped
    output = layer(x_BTD, context._replace(dropped_B=dropped_B))
    return gradients_of_loss(layer, x_BTD, output.out_BTD, output.auxiliary_loss)


def gradients_of_loss(layer: RoutedFeedForward, x_BTD: Tensor, out_BTD: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of `loss` and a weighted sum of `out_BTD`, by parameter and for `x`, with 0 for none."""
    direction = torch.linspace(-1, 1, out_BTD.numel(), device=x_BTD.device).view_as(out_BTD)
    inputs = dict(layer.named_parameters()) | {"x": x_BTD}
    found = torch.autograd.grad((out_BTD * direction).sum() + loss, list(inputs.values()), allow_unused=True)
    return {
        name: torch.zeros_like(inputs[name]) if gradient is None else gradient
        for name, gradient in zip(inputs, found, strict=True)
    }


def require(holds: bool, otherwise: str) -> None:
    """Raises `BrokenPropertyError` with the sentence `otherwise` unless the property holds."""
    if not holds:
        raise BrokenPropertyError(f"{otherwise}.")


def require_close(found: Tensor, expected: Tensor, otherwise: str) -> None:
    """Raises `BrokenPropertyError` with the sentence `otherwise` unless both are equal up to rounding."""
    try:
        assert_close(found, expected)
    except AssertionError as error:
        difference = float((found - expected).detach().abs().max()) if found.shape == expected.shape else float("nan")
        raise BrokenPropertyError(f"{otherwise}, by up to {difference:.3g}.") from error
