"""The maximal-update parametrization on the real module: every parameter has a kind, and first weights follow it."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.config.blocks import BLOCKS, conditioned_by
from experiments.config.overrides import load_config
from experiments.config.parametrization import KIND_BY_NAME, KINDS, kind_of, rate_factor
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.models.dit import DiT
from tests.unit.models.test_dit import Settings


def built(config: RunConfig) -> DiT:
    torch.manual_seed(config.seed)
    return DiT(config)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_parameter_of_every_router_has_one_kind(router: str, settings: Settings) -> None:
    names = [name for name, _ in DiT(settings(f"routing={router}")).named_parameters()]
    assert {kind_of(name) for name in names} >= {"input", "vector", "hidden", "output"}
    assert len(KIND_BY_NAME) == len(set(KIND_BY_NAME))


def test_features_of_latents_have_a_kind_too_and_no_row_is_left_over(latent_set) -> None:
    small = ["model=nano", "model.width=32", "model.num_layers=2"]
    latents = ["data.name=latents", f"data.path={latent_set}", "model.patch_size=2"]
    biases = ["routing=shared_expert", "routing.expert_bias=True"]
    blocks = [[f"model.block={block}", "model.qk_norm=affine"] for block in BLOCKS]
    repa = ["train.repa_weight=0.5"]
    arms = [latents, biases, repa, *blocks, *([f"routing={router}"] for router in ROUTERS)]
    configs = [load_config([*small, *arm]) for arm in arms]
    names = {name for config in configs for name, _ in DiT(config).named_parameters()}
    found = {".".join(p for p in name.split(".") if not p.isdigit()) for name in names}
    assert {name.replace("text_ffn", "ffn") for name in found} == set(KIND_BY_NAME)


@pytest.mark.parametrize("router", ROUTERS)
def test_at_the_base_width_first_weights_are_equal_to_the_bit(router: str, settings: Settings) -> None:
    mup = ["optim.parametrization=mup", "model.base_width=32"]
    plain, scaled = (built(settings(f"routing={router}", *more)).state_dict() for more in ([], mup))
    assert plain.keys() == scaled.keys()
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)


@pytest.mark.parametrize(
    ("block", "text"),
    [("pixart", "tokens"), ("pixart", "features"), *((block, "classes") for block in conditioned_by("class"))],
    indirect=["block"],
)
def test_first_weights_follow_the_power_of_their_kind(text: str, latent_set, settings: Settings) -> None:
    """At four times the width. A tensor of n numbers shows its standard deviation within about 1 / sqrt(n / 2)."""
    data = ["data.name=latents", f"data.path={latent_set}", "model.patch_size=2"] if text == "features" else []
    mup = ["optim.parametrization=mup", "model.base_width=32", "model.head_size=8", "routing=shared_expert", *data]
    narrow, wide = (dict(built(settings(*mup, f"model.width={width}")).named_parameters()) for width in (32, 128))
    seen = set()
    for name, parameter in narrow.items():
        kind = kind_of(name)
        one, other = (float(p.detach().square().mean().sqrt()) for p in (parameter, wide[name]))
        if one == 0:
            assert other == 0, name
            continue
        seen.add(kind)
        assert other / one == pytest.approx(4 ** KINDS[kind].std_power, rel=4 / math.sqrt(parameter.numel() / 2)), name
    drawn = {"tokens": {"vector", "encoder"}, "features": {"vector"}, "classes": set()}  # or else they start at 0
    assert seen == {"input", "hidden", "router"} | drawn[text]


@pytest.mark.parametrize("width", [64, 256])
def test_a_first_step_of_adam_moves_the_output_of_a_hidden_weight_equally(width: int, settings: Settings) -> None:
    """|dW x| / |x| at a first step, where Adam adds the rate times the sign of the gradient, here of rank 1."""
    config = settings("optim.parametrization=mup", "model.base_width=32", "model.head_size=8", f"model.width={width}")
    rate = config.optim.learning_rate * rate_factor(config, "blocks.0.attention.query.weight")
    generator = torch.Generator().manual_seed(0)
    x_D, grad_D = torch.randn(width, generator=generator), torch.randn(width, generator=generator)
    step_DD = rate * torch.outer(grad_D, x_D).sign()
    moved = (step_DD @ x_D).norm() / x_D.norm()
    expected = config.optim.learning_rate * 32 * math.sqrt(2 / math.pi)
    assert moved == pytest.approx(expected, rel=0.2)
