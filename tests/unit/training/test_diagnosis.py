"""A number that is not finite is traced to where it first appears."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.models.dit import DiT
from experiments.training.diagnosis import nonfinite_layer

Tiny = Callable[..., RunConfig]


def found(config: RunConfig, poison: Callable[[DiT], None]) -> str:
    torch.manual_seed(0)
    model = DiT(config)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    poison(model)
    stream = TrainStream(config)
    return nonfinite_layer(model, [stream.batch(0), stream.batch(8)], config.model.patch_size, world=1)


def weight(name: str, value: float) -> Callable[[DiT], None]:
    def poison(model: DiT) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] = value

    return poison


def test_weights_that_are_not_finite(tiny: Tiny) -> None:
    assert found(tiny(), weight("blocks.1.attention.out.weight", torch.nan)) == (
        "the weights blocks.1.attention.out.weight"
    )


@pytest.mark.parametrize(
    ("arm", "layer"),
    [
        ("routing=expert_choice", "blocks.1.attention.query"),
        ("routing=expert_choice", "blocks.0.ffn.w_in"),
        ("routing=dense", "blocks.1.ffn.w_in"),
    ],
)
def test_an_output_that_overflows(tiny: Tiny, arm: str, layer: str) -> None:
    assert found(tiny(arm), weight(f"{layer}.weight", torch.finfo(torch.float32).max)) == f"the output of {layer}"


def test_an_expert_and_a_router_that_overflow(tiny: Tiny) -> None:
    huge = torch.finfo(torch.float32).max
    for name in ("blocks.1.ffn.experts.w_in_EFD", "blocks.1.ffn.router.weight_DE"):

        def poison(model: DiT, name: str = name) -> None:
            with torch.no_grad():
                model.get_parameter(name).fill_(huge)

        assert found(tiny("routing=expert_choice"), poison) == f"the output of {name.rpartition('.')[0]}"


def test_a_gradient_that_overflows(tiny: Tiny) -> None:
    """A finite output whose derivative is infinite: the square root at zero."""

    class Root(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + (self.weight.sum() * 0).abs().sqrt()

    def poison(model: DiT) -> None:
        model.blocks[1].attention.out = Root(32, 32, bias=False)

    assert found(tiny(), poison) == "the gradient of blocks.1.attention.out.weight"


def test_a_healthy_model_leaves_the_loss_itself(tiny: Tiny) -> None:
    assert found(tiny(), lambda model: None) == "the loss"


def test_the_search_leaves_no_hook_behind(tiny: Tiny) -> None:
    config = tiny()
    model = DiT(config)
    nonfinite_layer(model, [TrainStream(config).batch(0)], config.model.patch_size, world=1)
    assert not any(module._forward_hooks for module in model.modules())
