"""Small routed layers (width 8, one layer, routed), and the gradients of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def config_of() -> Callable[..., RunConfig]:
    """A config with these `routing` settings; `width` is the model's."""

    def build(width: int = 8, **routing: Any) -> RunConfig:
        model = {"name": "nano", "width": width, "num_layers": 1, "sparse_layers": "all", "ffn_factor": 2.0}
        return RunConfig.model_validate({"model": model, "routing": routing})

    return build


@pytest.fixture
def layer_of(config_of: Callable[..., RunConfig]) -> Callable[..., RoutedFeedForward]:
    """A routed layer with these `routing` settings and decided preferences, so that a limit drops tokens."""

    def build(**settings: Any) -> RoutedFeedForward:
        layer = build_feed_forward(config_of(**settings), 0)
        assert isinstance(layer, RoutedFeedForward)
        torch.nn.init.normal_(layer.router.weight_DE)
        return layer

    return build


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
