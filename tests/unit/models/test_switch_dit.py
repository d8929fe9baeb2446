"""Switch-DiT: noise levels choose experts that change the input of a block, and a prior guides the choice."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.layers.block_mixture import BlockMixture, LinearExperts
from experiments.models.blocks.block import Block, Conditioning
from experiments.models.dit import DiT
from experiments.routing.contract import RoutingContext
from experiments.routing.stats import RoutingStats
from experiments.routing.switch_dit import divergence, layer_priors, match_units, prior_mask

Settings = Callable[..., RunConfig]
Awake = Callable[[RunConfig], DiT]
Inputs = tuple[Tensor, Tensor, Tensor]
ALL = ("routing=switch_dit", "model.sparse_layers=all")
LAYERS, EXPERTS, CHOSEN = 2, 3, 2


@pytest.fixture
def config(settings: Settings) -> RunConfig:
    return settings(*ALL)


def mixtures(model: DiT) -> list[BlockMixture]:
    return [block.switch for block in model.blocks if isinstance(block, Block) and block.switch is not None]


def decide_by_time(model: DiT) -> None:
    """Makes the choices of the mixtures follow t: with fresh weights nearly all times share one."""
    for parameter in model.time.mlp_in, model.time.mlp_out:
        torch.nn.init.normal_(parameter.weight, std=parameter.weight.shape[1] ** -0.5)
    for mixture in mixtures(model):
        torch.nn.init.normal_(mixture.router.weight_DE)


def outputs(model: DiT, inputs: Inputs) -> dict[str, Tensor]:
    """The velocity, the loss, and the gradient of every parameter."""
    output = model(*inputs)
    loss = output.velocity_BKP.square().mean() + output.auxiliary_loss
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradients = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}
    return {"velocity": output.velocity_BKP, "auxiliary_loss": output.auxiliary_loss, **gradients}


def test_with_experts_at_zero_the_model_is_the_dense_one_to_the_bit(settings: Settings, inputs: Inputs) -> None:
    config = settings(*ALL)
    model, dense = DiT(config), DiT(settings("routing=dense"))
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(parameter if parameter.any() else 0.2 * torch.randn_like(parameter))
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert all(".switch." in name for name in missing)
    assert all(not parameter.any() for mixture in mixtures(model) for parameter in mixture.experts.parameters())
    assert torch.equal(model(*inputs).velocity_BKP, dense(*inputs).velocity_BKP)


def test_the_mixture_changes_the_input_of_the_block_as_the_paper_says(config: RunConfig, awake: Awake) -> None:
    """Loops over images, tokens and experts: Block(x m) + (1 - m) x with m = 1 + sum g (W x + b)."""
    model = awake(config)
    decide_by_time(model)
    block, width, (num_images, num_tokens) = model.blocks[0], config.model.width, (4, 5)
    x_BTD, time_BD = torch.randn(num_images, num_tokens, width), torch.randn(num_images, width)
    context = RoutingContext.of_a_layer_alone(x_BTD)._replace(time_BD=time_BD)
    modulation, text_BLD = torch.randn(num_images, 6, width), torch.randn(num_images, 3, width)
    mask_B11L = torch.ones(num_images, 1, 1, 3, dtype=torch.bool)
    given = Conditioning(torch.randn(num_images, width), modulation, mask_B11L)
    out_BTD, _, answer = block(x_BTD, text_BLD, given, context)
    m_BTD = torch.ones_like(x_BTD)
    experts, choices = block.switch.experts, []
    for image, token in itertools.product(range(num_images), range(num_tokens)):
        p_E = (F.silu(time_BD[image]) @ block.switch.router.weight_DE).softmax(dim=0)
        chosen = [expert for _, expert in sorted(zip(p_E.tolist(), range(EXPERTS), strict=True))[-CHOSEN:]]
        choices.append(sorted(chosen))
        for expert in chosen:
            mixed_D = experts.weight_EDD[expert] @ x_BTD[image, token] + experts.bias_ED[expert]
            m_BTD[image, token] = m_BTD[image, token] + p_E[expert] * mixed_D
    plain_BTD, _, _ = block.on_input(x_BTD * m_BTD, text_BLD, given, context)
    assert_close(out_BTD, plain_BTD + (1 - m_BTD) * x_BTD, rtol=1e-4, atol=1e-4)
    assert len({tuple(choice) for choice in choices}) > 1
    assert [row.nonzero().flatten().tolist() for row in answer.assignment.chosen_NE] == choices


def test_the_choice_is_that_of_the_noise_level_alone(config: RunConfig, awake: Awake, inputs: Inputs) -> None:
    model = awake(config).eval()
    decide_by_time(model)
    noisy_BCHW, _, captions_BL = inputs
    found = set()
    for t in torch.linspace(0, 1, 9).tolist():
        chosen = []
        for image_BCHW, caption_BL in ((noisy_BCHW, captions_BL), (3 * noisy_BCHW.flip(0), captions_BL.flip(0))):
            answers = model(image_BCHW, torch.full((4,), t), caption_BL).feed_forward
            chosen += [answer.assignment.chosen_NE for answer in answers]
        for layer in range(LAYERS):
            first_NE, second_NE = chosen[layer], chosen[layer + LAYERS]
            assert torch.equal(first_NE, second_NE)
            assert (first_NE == first_NE[0]).all()
            assert int(first_NE[0].sum()) == CHOSEN
            found.add((layer, tuple(first_NE[0].tolist())))
    assert len(found) > LAYERS


def test_no_image_changes_another(config: RunConfig, awake: Awake, inputs: Inputs) -> None:
    model = awake(config).eval()
    whole = model(*inputs).velocity_BKP
    alone = model(*(each[1:2] for each in inputs)).velocity_BKP
    assert_close(alone[0], whole[1], rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(config: RunConfig, awake: Awake, inputs: Inputs) -> None:
    model = awake(config)
    decide_by_time(model)
    found = outputs(model, inputs)
    assert all(value.isfinite().all() for value in found.values())
    # The last mmdit block keeps the query of its text tokens, as SD3's checkpoints do, and nothing reads it.
    unread = f"blocks.{LAYERS - 1}.text_attention.query."
    assert [name for name, value in found.items() if not value.any() and not name.startswith(unread)] == []


def test_experts_leave_zero(config: RunConfig, awake: Awake, inputs: Inputs) -> None:
    """Where a model starts, x m passes through the block as it is; once the block computes, experts learn."""
    model = awake(config)
    for parameter in (p for mixture in mixtures(model) for p in mixture.experts.parameters()):
        torch.nn.init.zeros_(parameter)
    found = outputs(model, inputs)
    chosen = [answer.assignment.chosen_NE.any(dim=0) for answer in model(*inputs).feed_forward]
    for layer, chosen_E in enumerate(chosen):
        gradient_E = found[f"blocks.{layer}.switch.experts.weight_EDD"].abs().sum(dim=(1, 2))
        assert torch.equal(gradient_E > 0, chosen_E)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_fast_is_the_reference_checkpointed_or_not(
    checkpointed: bool, settings: Settings, awake: Awake, inputs: Inputs
) -> None:
    fast, reference = (awake(settings(*ALL, f"train.implementation={each}")) for each in ("fast", "reference"))
    for model in (fast, reference):
        torch.manual_seed(1)
        decide_by_time(model)
    fast.checkpointed = checkpointed
    expected = outputs(reference, inputs)
    for name, value in outputs(fast, inputs).items():
        assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
    assert expected["auxiliary_loss"] > 0


def test_linear_experts_may_have_no_slot() -> None:
    experts = LinearExperts(3, 4)
    torch.nn.init.normal_(experts.weight_EDD)
    x_MD = torch.randn(5, 4)
    found = experts(x_MD, torch.tensor([0, 5, 0]))
    assert_close(found, x_MD @ experts.weight_EDD[1].T)


# ------------------------------------------------------------------------------------------------------- the prior


@pytest.mark.parametrize(("num_units", "num_chosen"), [(6, 4), (3, 1), (84, 56), (4, 4)])
def test_the_prior_moves_over_the_units_faster_near_noise(num_units: int, num_chosen: int) -> None:
    mask_GU = prior_mask(torch.linspace(0, 1, 1001), num_units, num_chosen)
    assert (mask_GU.sum(dim=1) == num_chosen).all()
    first_G = mask_GU.argmax(dim=1)
    last = num_units - num_chosen
    assert first_G.tolist() == [round((step / 1000) ** 4 * last) for step in range(1001)]
    assert (first_G[0], first_G[-1]) == (0, last)
    assert (mask_GU.diff(dim=1).abs().sum(dim=1) <= 2).all()  # the units of a level lie beside each other


def test_units_are_matched_with_the_smallest_difference() -> None:
    """Against all permutations of five units."""
    chosen_GU, mask_GU = torch.randint(0, 2, (2, 20, 5)).float()

    def difference(place: list[int]) -> float:
        return float((chosen_GU - mask_GU[:, place]).abs().sum())

    place_U = match_units(chosen_GU, mask_GU).tolist()
    assert sorted(place_U) == list(range(5))
    assert difference(place_U) == min(difference(list(each)) for each in itertools.permutations(range(5)))


def test_a_choice_that_is_the_prior_in_another_order_is_found() -> None:
    mask_GU = prior_mask(torch.linspace(0, 1, 50), 9, 3)
    order = torch.randperm(9)
    assert torch.equal(mask_GU[:, match_units(mask_GU[:, order], mask_GU)], mask_GU[:, order])


def test_the_divergence_is_0_for_equals_and_log_2_for_strangers() -> None:
    p_BU = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert float(divergence(p_BU, p_BU)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(p_BU, p_BU.flip(1))) == pytest.approx(math.log(2), abs=1e-4)
    p_BU, q_BU = torch.rand(2, 3, 7).softmax(dim=-1)
    assert float(divergence(p_BU, q_BU)) == pytest.approx(float(divergence(q_BU, p_BU)))
    m_BU = (p_BU + q_BU) / 2
    kl = [F.kl_div(m_BU.log(), each, reduction="batchmean") for each in (p_BU, q_BU)]
    assert float(divergence(p_BU, q_BU)) == pytest.approx(float(sum(kl)) / 2, rel=1e-3)


def test_the_loss_of_the_model_is_the_divergence_over_all_units(
    config: RunConfig, awake: Awake, inputs: Inputs
) -> None:
    """Switch-DiT's public code puts the probabilities of all layers side by side, at the noise levels of the batch."""
    model, (_, time_B, _) = awake(config), inputs
    decide_by_time(model)
    grid_G = torch.linspace(0, 1, 100)

    def probabilities(time: Tensor) -> Tensor:
        z = F.silu(model.time.vector(time))
        return torch.cat([(z @ mixture.router.weight_DE).softmax(dim=1) for mixture in mixtures(model)], dim=1)

    full_GU = probabilities(grid_G).unflatten(1, (LAYERS, EXPERTS))
    quantized_GU = torch.zeros_like(full_GU).scatter_(2, full_GU.topk(CHOSEN).indices, 1.0).flatten(1)
    num_units, num_chosen = LAYERS * EXPERTS, LAYERS * CHOSEN
    place_U = match_units(quantized_GU, prior_mask(grid_G, num_units, num_chosen))
    active_BU = prior_mask(time_B, num_units, num_chosen)[:, place_U]
    expected = divergence(probabilities(time_B) / LAYERS, active_BU / num_chosen)
    assert_close(model(*inputs).auxiliary_loss, expected)
    assert model.eval()(*inputs).auxiliary_loss == 0


def test_the_priors_of_all_layers_are_one_distribution(config: RunConfig, awake: Awake) -> None:
    model = awake(config)
    routers = [mixture.router for mixture in mixtures(model)]
    priors = layer_priors(routers, torch.randn(10, config.model.width), torch.rand(7))
    assert [tuple(prior.shape) for prior in priors] == [(7, EXPERTS)] * LAYERS
    assert_close(torch.cat(priors, dim=1).sum(dim=1), torch.ones(7))


def test_the_weight_of_the_loss_scales_it_and_0_spares_it(settings: Settings, awake: Awake, inputs: Inputs) -> None:
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        model = awake(settings(*ALL, f"routing.prior_loss_weight={weight}"))
        losses[weight] = float(model(*inputs).auxiliary_loss.detach())
    assert losses[0.0] == 0
    assert losses[3.0] == pytest.approx(3 * losses[1.0])


def test_the_prior_teaches_routers_and_the_embedded_time_alone(config: RunConfig, awake: Awake, inputs: Inputs) -> None:
    model = awake(config)
    output = model(*inputs)
    named = dict(model.named_parameters())
    found = torch.autograd.grad(output.auxiliary_loss, list(named.values()), allow_unused=True)
    taught = {name for name, gradient in zip(named, found, strict=True) if gradient is not None and gradient.any()}
    assert {name for name in taught if not name.startswith("time.mlp_")} == {
        f"blocks.{layer}.switch.router.weight_DE" for layer in range(LAYERS)
    }


# ------------------------------------------------------------------------------------------ statistics and settings


def test_statistics_are_those_of_two_experts_per_token(config: RunConfig, awake: Awake, inputs: Inputs) -> None:
    model = awake(config).eval()
    decide_by_time(model)
    with torch.no_grad():
        answers = model(*inputs).feed_forward
    for answer in answers:
        stats = RoutingStats(EXPERTS)
        stats.add(answer, inputs[1])
        row = stats.row(0, 0, "mixed_t")
        assert (row.dropped_share, row.slots_per_token, row.experts_per_token) == (0, CHOSEN, [0, 0, 1])
        assert sum(row.load) == pytest.approx(1)


def test_only_routed_layers_have_a_mixture(settings: Settings) -> None:
    model = DiT(settings("routing=switch_dit"))
    assert [block.switch is not None for block in model.blocks] == [False, True]
    names = {name.split(".switch.")[0] for name, _ in model.named_parameters() if ".switch." in name}
    assert names == {"blocks.1"}


REFUSED = {
    "parallel.expert_parallel=3": "parallel.expert_parallel=3 does not work with routing.name=switch_dit",
    "routing.expert=gelu": "routing.expert=gelu does not fit switch_dit: its experts are matrices",
    "routing.expert_factor=4": "routing.expert_factor=4.0 does not fit switch_dit: its experts are matrices",
    "routing.shared_factor=1": "routing.shared_factor=1.0 does not fit switch_dit: its experts are matrices",
    "routing.gating=sigmoid": "routing.gating=sigmoid does not fit switch_dit, whose prior",
    "routing.gate_norm=token": "routing.gate_norm=token does not fit switch_dit",
    "routing.gate_scale=2": "routing.gate_scale=2.0 does not fit switch_dit",
    "routing.input=modulated": "routing.input=modulated does not fit switch_dit, in which the noise level alone",
    "routing.balance_loss_weight=0.1": "routing.balance_loss_weight=0.1 does not fit switch_dit; its loss is",
    "routing.capacity_factor=2": "routing.capacity_factor=2.0 does not fit switch_dit: all tokens of an image",
    "routing.eval_capacity_factor=2": "routing.eval_capacity_factor=2.0 does not fit switch_dit",
    "routing.group_images=2": "routing.group_images=2 does not fit switch_dit, in which no tokens compete",
    "routing.unconditional_expert=True": "routing.unconditional_expert=True does not fit routing.name=switch_dit",
    "routing.bias_update_rate=0.1": "routing.bias_update_rate=0.1 does not fit routing.name=switch_dit",
    "routing.eval_decision=threshold": "routing.eval_decision=threshold does not fit routing.name=switch_dit",
    "routing.top_k=4": "routing.top_k=4 is more than routing.num_experts=3",
    "routing.top_k=None": "routing.top_k=None: switch_dit needs a value",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_without_meaning_is_refused_in_a_line_with_a_way_out(setting: str) -> None:
    layout = ["parallel.world=3", "train.batch_images=6"] if setting.startswith("parallel") else []
    with pytest.raises(ConfigError, match=re.escape(REFUSED[setting])) as caught:
        load_config(["routing=switch_dit", setting, *layout])
    assert "Use " in str(caught.value)
    assert "\n" not in str(caught.value)
