"""Small routed layers (width 8, one layer, routed), and the gradients of a layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.layers import small_layers
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.small_layers import small_config, small_layer

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
        if forward is None:
            return small_layers.gradients(layer, x_BTD)
        x_BTD = x_BTD.clone().requires_grad_()
        return small_layers.gradients_of_loss(layer, x_BTD, *forward(x_BTD))

    return gradients
