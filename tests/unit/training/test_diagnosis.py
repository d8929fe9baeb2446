"""A number that is not finite is traced to where it first appears."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.models.dit import DiT
from experiments.plugins.loading import load_plugins
from experiments.training.diagnosis import Cause, nonfinite_cause, nonfinite_error
from tests.unit.plugins.conftest import WritePlugin, no_plugins, write_plugin

__all__ = ["no_plugins", "write_plugin"]

Tiny = Callable[..., RunConfig]


def cause_of(config: RunConfig, poison: Callable[[DiT], None]) -> Cause:
    torch.manual_seed(0)
    model = DiT(config)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    poison(model)
    stream = TrainStream(config)
    return nonfinite_cause(model, [stream.batch(0), stream.batch(8)], config, world=1)


def found(config: RunConfig, poison: Callable[[DiT], None]) -> str:
    return cause_of(config, poison).where


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


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("experts.w_in_EFD", "the output of blocks.1.ffn.experts"),
        ("router.weight_DE", "the logits of the router of blocks.1.ffn, whose input is finite"),
    ],
)
def test_an_expert_and_a_router_that_overflow(name: str, where: str, tiny: Tiny) -> None:
    def poison(model: DiT) -> None:
        with torch.no_grad():
            model.get_parameter(f"blocks.1.ffn.{name}").fill_(torch.finfo(torch.float32).max)

    assert cause_of(tiny("routing=expert_choice"), poison) == Cause(where)


ANSWER = "GroupDecision(token_GEC, weight_GEC, filled_GEC=None, auxiliary_loss=None)"


@pytest.mark.parametrize(
    ("answer", "where", "demand"),
    [
        (
            "GroupDecision(token_GEC, weight_GEC / 0 - weight_GEC / 0, filled_GEC=None, auxiliary_loss=None)",
            "the weights of slots from the router of blocks.1.ffn, whose logits are finite",
            "which must answer finite weights and losses for all finite logits.",
        ),
        (
            "GroupDecision(token_GEC, weight_GEC, filled_GEC=None, auxiliary_loss=weight_GEC.sum() / 0)",
            "the auxiliary loss from the router of blocks.1.ffn, whose logits are finite",
            "which must answer finite weights and losses for all finite logits.",
        ),
        (
            "GroupDecision(token_GEC, weight_GEC + (weight_GEC * 0).sqrt(), filled_GEC=None, auxiliary_loss=None)",
            "the gradient of blocks.1.ffn.router.weight_DE",
            "which has no finite derivative.",
        ),
    ],
)
def test_a_plugin_that_answers_nan_is_named_as_the_cause(
    answer: str, where: str, demand: str, tiny: Tiny, write_plugin: WritePlugin
) -> None:
    """A learning rate cannot mend it, so that the hint is another one than that of a divergence."""
    path = write_plugin(**{ANSWER: answer})
    load_plugins([path])
    config = tiny("routing=stripes")
    cause = cause_of(config, lambda model: None)
    assert cause == Cause(where, f"Correct plugin {path}: router 'stripes', {demand}")
    said = str(nonfinite_error(config, 8, cause, "loss nan"))
    assert said == f"Not finite at a router after 8 images: {where} (loss nan). {cause.hint}"


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
    nonfinite_cause(model, [TrainStream(config).batch(0)], config, world=1)
    assert not any(module._forward_hooks for module in model.modules())
