"""Small routed layers (width 8, one layer, routed), and the gradients of a layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.properties import small_config, small_layer

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def config_of() -> Callable[..., RunConfig]:
    """A config with these `routing` settings; `width` is the model's."""

    return small_config


@pytest.fixture
def layer_of() -> Callable[..., RoutedFeedForward]:
    """A routed layer with these `routing` settings and decided preferences, so that a limit drops tokens."""

    return small_layer


@pytest.fixture
def gradients_of() -> Callable[..., dict[str, Tensor]]:
    """Gradients of a loss that reads every output and the auxiliary loss, by parameter name and for the input `x`."""

    def gradients(layer: RoutedFeedForward, x_BTD: Tensor, forward: Forward | None = None) -> dict[str, Tensor]:
        x_BTD = x_BTD.clone().requires_grad_()
        output = layer(x_BTD)
        out_BTD, auxiliary_loss = forward(x_BTD) if forward else (output.out_BTD, output.auxiliary_loss)
        loss = (
            out_BTD * torch.linspace(-1, 1, out_BTD.numel(), device=x_BTD.device).view_as(out_BTD)
        ).sum() + auxiliary_loss
        inputs = dict(layer.named_parameters()) | {"x": x_BTD}
        return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))

    return gradients
