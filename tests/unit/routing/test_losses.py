"""The auxiliary losses against their formulas in loops, and whom their gradients reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.routers import ROUTERS, choosing_names
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.small_layers import gradients, small_context
from experiments.routing.contract import Assignment, RoutingContext
from experiments.routing.losses import (
    balance_loss,
    contrastive_loss,
    counted_balance_loss,
    prediction_loss,
    similarity_loss,
    z_loss,
)

LayerOf = Callable[..., RoutedFeedForward]


def test_perfect_balance_is_one() -> None:
    logits_GSE = torch.eye(4).repeat(2, 3, 1)  # 12 tokens of a group, each expert wanted most by three
    choice_GSK = torch.stack([torch.arange(12) % 4, (torch.arange(12) + 1) % 4], dim=1).repeat(2, 1, 1)
    assert_close(balance_loss(logits_GSE, choice_GSK), torch.tensor(1.0))


def test_everybody_at_one_expert_is_the_number_of_experts() -> None:
    logits_GSE = torch.tensor([100.0, 0.0, 0.0, 0.0]).expand(1, 6, 4)
    assert_close(balance_loss(logits_GSE, torch.zeros(1, 6, 1, dtype=torch.int64)), torch.tensor(4.0))


def test_it_is_the_formula_of_the_paper() -> None:
    """alpha sum_i (n / (K T) sum_t I(t chose i)) (1 / T sum_t P_i(t)), DiT-MoE equation 5, without alpha."""
    logits_SE = torch.randn(10, 4)
    choice_SK = logits_SE.topk(2).indices
    expected = 0.0
    for expert in range(4):
        chosen = sum(1 for token in range(10) if expert in choice_SK[token].tolist())
        probability = sum(float(logits_SE[token].softmax(0)[expert]) for token in range(10))
        expected += 4 / (2 * 10) * chosen * probability / 10
    assert_close(balance_loss(logits_SE[None], choice_SK[None]), torch.tensor(expected))


def test_groups_are_balanced_one_by_one() -> None:
    """Two groups that each crowd one expert are not balanced by each other."""
    logits_GSE = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]).expand(2, 5, 2)
    choice_GSK = torch.tensor([0, 1]).view(2, 1, 1).expand(2, 5, 1)
    assert float(balance_loss(logits_GSE, choice_GSK)) > 1.99


def test_the_gradient_lowers_the_logit_of_the_crowded_expert() -> None:
    logits_GSE = torch.zeros(1, 6, 3, requires_grad=True)
    balance_loss(logits_GSE, torch.zeros(1, 6, 1, dtype=torch.int64)).backward()
    assert logits_GSE.grad is not None
    assert logits_GSE.grad[..., 0].gt(0).all()
    assert logits_GSE.grad[..., 1:].lt(0).all()


def similarity_by_loops(p_NE: Tensor, m_NE: Tensor) -> float:
    """Expert Race, section 4.2, with every sum written out."""
    num_tokens, num_experts = p_NE.shape
    tokens, experts = range(num_tokens), range(num_experts)
    m = [[sum(float(m_NE[n, i] * m_NE[n, j]) for n in tokens) for j in experts] for i in experts]
    p = [[sum(float(p_NE[n, i] * p_NE[n, j]) for n in tokens) for j in experts] for i in experts]
    diagonal = sum(m[i][i] for i in experts)
    pairs = [(i, j) for i in experts for j in experts if i != j]
    rest = sum(m[i][j] for i, j in pairs)
    loss = sum(num_experts * m[i][i] / diagonal * p[i][i] for i in experts)
    if rest:
        loss += sum((num_experts**2 - num_experts) * m[i][j] / rest * p[i][j] for i, j in pairs)
    return loss / num_tokens


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_similarity_loss_is_the_formula_of_the_paper(share: float) -> None:
    logits_NE, chosen_NE = torch.randn(20, 4), torch.rand(20, 4) < share
    expected = similarity_by_loops(logits_NE.softmax(-1), chosen_NE.float())
    assert float(similarity_loss(logits_NE, chosen_NE)) == pytest.approx(expected, rel=1e-5)


def weights_of_similarity(chosen_NE: Tensor) -> Tensor:
    """W, read from the loss: tokens certain of i give W_ii, and tokens torn between i and j add W_ij and W_ji."""
    num_tokens, num_experts = chosen_NE.shape

    def loss_of(*experts: int) -> float:
        logits_NE = torch.full((num_tokens, num_experts), -1e4)
        logits_NE[:, list(experts)] = 0.0
        return float(similarity_loss(logits_NE, chosen_NE))

    weight_EE = torch.zeros(num_experts, num_experts)
    for i in range(num_experts):
        weight_EE[i, i] = loss_of(i)
    for i in range(num_experts):
        for j in range(i):
            weight_EE[i, j] = weight_EE[j, i] = (4 * loss_of(i, j) - weight_EE[i, i] - weight_EE[j, j]) / 2
    return weight_EE


def test_the_weights_of_the_similarity_loss_are_1_on_average() -> None:
    assert_close(weights_of_similarity(torch.ones(6, 4, dtype=torch.bool)), torch.ones(4, 4))
    weight_EE = weights_of_similarity(torch.rand(40, 4) < 0.5)
    assert float(weight_EE.diagonal().mean()) == pytest.approx(1)
    assert float(weight_EE.sum() - weight_EE.diagonal().sum()) == pytest.approx(4 * 3, rel=1e-4)


def test_without_a_token_of_two_experts_only_the_diagonal_counts() -> None:
    logits_NE = torch.randn(8, 4)
    chosen_NE = torch.eye(4, dtype=torch.bool).repeat(2, 1)
    loss = similarity_loss(logits_NE, chosen_NE)
    assert float(loss) == pytest.approx(similarity_by_loops(logits_NE.softmax(-1), chosen_NE.float()), rel=1e-5)
    assert float(similarity_loss(logits_NE, torch.zeros(8, 4, dtype=torch.bool))) == 0


def test_the_z_loss_is_the_mean_square_of_logsumexp() -> None:
    logits_NE = torch.randn(9, 4) * 3
    expected = sum(math.log(sum(math.exp(value) for value in row)) ** 2 for row in logits_NE.tolist()) / 9
    assert float(z_loss(logits_NE)) == pytest.approx(expected, rel=1e-5)


def test_the_prediction_loss_is_the_cross_entropy_over_all_entries() -> None:
    prediction_NE, chosen_NE = torch.randn(9, 4), torch.rand(9, 4) < 0.3
    expected = 0.0
    for row, chosen in zip(prediction_NE.tolist(), chosen_NE.tolist(), strict=True):
        for value, is_chosen in zip(row, chosen, strict=True):
            probability = 1 / (1 + math.exp(-value))
            expected -= math.log(probability if is_chosen else 1 - probability) / 36
    assert float(prediction_loss(prediction_NE, chosen_NE)) == pytest.approx(expected, rel=1e-5)


def chosen_by(choice_GN: list[list[int]]) -> Tensor:
    """One of four experts for each token of a group, or none where the choice is -1, [G, N, 4]."""
    return torch.tensor(choice_GN).unsqueeze(-1) == torch.arange(4)


def infonce_of_group(x_ND: Tensor, prototype_DE: Tensor, choice_N: list[int]) -> list[float]:
    """The loss of each active expert; none where fewer than two are active."""
    active, losses = sorted(set(choice_N) - {-1}), []
    tokens = {e: [n for n, choice in enumerate(choice_N) if choice == e] for e in active}
    centroid = {e: sum(x_ND[n] for n in tokens[e]) / len(tokens[e]) for e in active}
    for e in active if len(active) > 1 else []:
        similar = {a: float(torch.cosine_similarity(prototype_DE[:, e], centroid[a], dim=0)) / 0.07 for a in active}
        losses.append(-math.log(math.exp(similar[e]) / sum(math.exp(value) for value in similar.values())))
    return losses


LONE, NOBODY = [1, 1, -1, 1, 1, -1, 1], [-1] * 7


@pytest.mark.parametrize(
    "choice_GN",
    [
        [[0, 2, 2, 0, 3, -1, 3]],
        [[0, 2, 2, 0, 3, -1, 3], [1, 3, 3, -1, -1, -1, 1]],
        [LONE, [0, 1, 2, 3, 2, 1, 0], NOBODY, [1, 3, 3, -1, -1, -1, 1]],
    ],
)
def test_the_contrastive_loss_is_infonce_over_active_experts(choice_GN: list[list[int]]) -> None:
    """Experts are contrasted within their group, and the mean is over those of all groups with at least two."""
    x_GSD, prototype_DE = torch.randn(len(choice_GN), 7, 5), torch.randn(5, 4)
    losses = [
        loss
        for x_ND, choice_N in zip(x_GSD, choice_GN, strict=True)
        for loss in infonce_of_group(x_ND, prototype_DE, choice_N)
    ]
    found = contrastive_loss(x_GSD, prototype_DE, chosen_by(choice_GN))
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("choice_GN", [[[-1, -1, -1]], [[2, 2, 2]], [[1, -1, 1]], [[1, 1, 1], [2, 2, -1]]])
def test_with_fewer_than_two_active_experts_nothing_is_contrasted(choice_GN: list[list[int]]) -> None:
    x_GSD = torch.randn(len(choice_GN), 3, 5, requires_grad=True)
    prototype_DE = torch.randn(5, 4, requires_grad=True)
    loss = contrastive_loss(x_GSD, prototype_DE, chosen_by(choice_GN))
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, [x_GSD, prototype_DE]):
        assert gradient.eq(0).all()


def test_with_two_active_experts_gradients_are_finite_and_not_zero() -> None:
    x_GSD, prototype_DE = torch.randn(1, 3, 5, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = contrastive_loss(x_GSD, prototype_DE, chosen_by([[0, 3, -1]]))
    of_x_GSD, of_prototype_DE = torch.autograd.grad(loss, [x_GSD, prototype_DE])
    assert of_x_GSD.isfinite().all()
    assert of_prototype_DE.isfinite().all()
    assert of_prototype_DE.ne(0).any(dim=0).tolist() == [True, False, False, True]
    assert of_x_GSD[0, 2].eq(0).all()


COUNTED_N = torch.arange(40) % 3 > 0
"""26 of 40 tokens."""


def test_losses_over_the_tokens_that_count_are_those_of_these_tokens_alone() -> None:
    logits_NE, chosen_NE = torch.randn(40, 4), torch.rand(40, 4) < 0.4
    kept = logits_NE[COUNTED_N], chosen_NE[COUNTED_N]
    assert_close(z_loss(logits_NE, COUNTED_N), z_loss(kept[0]))
    assert_close(similarity_loss(logits_NE, chosen_NE, counted_N=COUNTED_N), similarity_loss(*kept))
    assert_close(prediction_loss(logits_NE, chosen_NE, COUNTED_N), prediction_loss(*kept))


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_balance_loss_over_the_tokens_that_count_is_that_of_groups_of_these_alone(
    top_k: int, everywhere: bool
) -> None:
    """Each of the four groups has ten tokens, of which different numbers count; the last has none and is left out."""
    logits_GSE, counted_GS = torch.randn(4, 10, 4), COUNTED_N.view(4, 10) & (torch.arange(4) < 3).unsqueeze(1)
    choice_GSK = logits_GSE.topk(top_k).indices
    alone = [
        balance_loss(logits_SE[kept_S].unsqueeze(0), choice_SK[kept_S].unsqueeze(0))
        for logits_SE, choice_SK, kept_S in zip(logits_GSE[:3], choice_GSK[:3], counted_GS[:3], strict=True)
    ]
    found = counted_balance_loss(logits_GSE, choice_GSK, counted_GS, everywhere)
    assert_close(found, torch.stack(alone).mean())
    assert_close(
        counted_balance_loss(logits_GSE, choice_GSK, torch.ones_like(counted_GS), everywhere),
        balance_loss(logits_GSE, choice_GSK, everywhere),
    )


def test_losses_over_no_tokens_are_0_and_so_are_their_gradients() -> None:
    logits_NE, nobody_N = torch.randn(40, 4, requires_grad=True), torch.zeros(40, dtype=torch.bool)
    chosen_NE = logits_NE.detach() > 0
    losses = [
        z_loss(logits_NE, nobody_N),
        similarity_loss(logits_NE, chosen_NE, counted_N=nobody_N),
        prediction_loss(logits_NE, chosen_NE, nobody_N),
        counted_balance_loss(logits_NE.view(4, 10, 4), logits_NE.topk(2).indices.view(4, 10, 2), nobody_N.view(4, 10)),
    ]
    assert [loss.item() for loss in losses] == [0.0] * 4
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), [logits_NE])
    assert gradient.eq(0).all()


LOSSES: dict[str, dict[str, Any]] = {
    "balance of groups": {"name": "shared_expert", "group_images": 1, "capacity_factor": 1.0},
    "balance of a batch": {"name": "shared_expert", "group_images": "batch"},
    "balance of a process": {"name": "shared_expert", "group_images": 1, "balance_scope": "process"},
    "balance of all": {"name": "shared_expert", "balance_scope": "all"},
    "Switch's gate": {"name": "switch", "group_images": 1},
    "GShard's gate": {"name": "token_choice", "capacity_factor": None},
    "a gate of three": {"name": "token_choice", "capacity_factor": None, "top_k": 3},
    "z-loss": {"name": "shared_expert", "balance_loss_weight": 0.0, "z_loss_weight": 1.0},
    "similarity": {"name": "expert_choice", "similarity_loss_weight": 1.0},
    "contrast": {"name": "promoe"},
    "contrast of experts": {"name": "promoe_ec"},
    "predictor": {"name": "diffmoe", "group_images": 1},
    "threshold": {"name": "moma", "group_images": 1, "eval_decision": "threshold"},
    "threshold of logits": {"name": "expert_choice", "gating": "identity", "eval_decision": "threshold"},
    "race": {"name": "expert_race", "group_images": 1},
    "bias": {"name": "loss_free"},
}
"""A router for each loss and each state that is taken over tokens."""


def loss_and_state(layer: RoutedFeedForward, x_BTD: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor | None]:
    output = layer(x_BTD, context)
    return output.auxiliary_loss, output.assignment.observed


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES.keys())
def test_losses_and_states_are_those_of_the_images_with_a_caption(settings: dict[str, Any], layer_of: LayerOf) -> None:
    """Images without one have an expert of their own, and are as if they were not there."""
    layer, x_BTD = layer_of(num_experts=4, unconditional_expert=True, **settings), torch.randn(4, 16, 8)
    found = loss_and_state(layer, x_BTD, small_context(x_BTD, num_dropped=1))
    layer.unconditional, layer.router.has_unconditional = None, False
    loss, observed = loss_and_state(layer, x_BTD[1:], small_context(x_BTD[1:]))
    assert_close(found[0], loss)
    assert (found[1] is None) == (observed is None)
    if found[1] is not None and observed is not None:
        assert_close(found[1], observed)
    assert loss.item() > 0 or observed is not None


WITH_PADDING = {name: settings for name, settings in LOSSES.items() if name != "race"}
"""A race lets padding compete with text, so that its pairs follow both."""


def with_padding(x_BTD: Tensor) -> RoutingContext:
    """Captions of 3, 10, 7 and 16 tokens; an expert that chooses has more slots than the first has tokens."""
    real_BT = torch.arange(16) < torch.tensor([[3], [10], [7], [16]])
    return small_context(x_BTD)._replace(real_BT=real_BT)


@pytest.mark.parametrize("settings", WITH_PADDING.values(), ids=WITH_PADDING.keys())
def test_padding_of_captions_changes_no_loss_and_no_state(settings: dict[str, Any], layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(num_experts=4, **settings), torch.randn(4, 16, 8)
    layer.router.in_layer(0, 1.0, is_text=True)
    context = with_padding(x_BTD)
    loss, observed = loss_and_state(layer, x_BTD, context)
    assert context.real_BT is not None
    replaced_BTD = torch.where(context.real_BT.unsqueeze(-1), x_BTD, torch.randn_like(x_BTD))
    found = loss_and_state(layer, replaced_BTD, context)
    assert_close(found[0], loss)
    if found[1] is not None and observed is not None:
        assert_close(found[1], observed)


def test_a_predictor_gives_no_padding_to_an_expert(layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name="diffmoe", num_experts=4).eval(), torch.randn(4, 16, 8)
    layer.router.in_layer(0, 1.0, is_text=True)
    layer.router.state.update(torch.full((4,), 0.25))
    context = with_padding(x_BTD)
    experts_BT = layer(x_BTD, context).experts_per_token_BT
    assert experts_BT[~context.real_BT].sum() == 0
    assert experts_BT[context.real_BT].sum() > 0


def choices(found: Assignment, top_k: int) -> Tensor:
    """The balance loss of the best `top_k`; GShard's and Switch's count first choices."""
    return balance_loss(found.logits_NE.unsqueeze(0), found.logits_NE.topk(top_k).indices.unsqueeze(0))


def contrast(num_groups: int, layer: RoutedFeedForward, x_BTD: Tensor, found: Assignment) -> Tensor:
    """The contrastive loss of a batch in routing groups."""
    chosen_GSE = found.chosen_NE.unflatten(0, (num_groups, -1))
    return contrastive_loss(x_BTD.reshape(num_groups, -1, 8), layer.router.weight_DE, chosen_GSE)


EXPECTED: dict[str, Callable[[RoutedFeedForward, Tensor, Assignment], Tensor]] = {
    "st_moe": lambda layer, x_BTD, found: 0.01 * choices(found, 1) + 0.001 * z_loss(found.logits_NE),
    "token_choice": lambda layer, x_BTD, found: 0.01 * choices(found, 1),
    "switch": lambda layer, x_BTD, found: 0.01 * choices(found, 1),
    "shared_expert": lambda layer, x_BTD, found: 0.005 * choices(found, 2),
    "promoe": partial(contrast, 1),  # The batch is one group, and with `promoe_ec` each of 4 images is one.
    "promoe_ec": partial(contrast, 4),
    "ec_noise_capacity": lambda layer, x_BTD, found: 0.001 * z_loss(found.logits_NE),
    "expert_race": lambda layer, x_BTD, found: 0.0001 * similarity_loss(found.logits_NE, found.chosen_NE),
    "diffmoe": lambda layer, x_BTD, found: prediction_loss(
        layer.router.predictor(x_BTD.flatten(0, 1)), found.chosen_NE
    ),
}


@pytest.mark.parametrize("name", choosing_names())
def test_each_router_adds_its_losses_with_their_weights(name: str, layer_of: LayerOf) -> None:
    """In evaluation only a balance loss is left, which validation reports."""
    layer, x_BTD = layer_of(name=name, num_experts=4), torch.randn(4, 16, 8)
    output = layer(x_BTD, small_context(x_BTD, num_dropped=1))
    expected = EXPECTED[name](layer, x_BTD, output.assignment) if name in EXPECTED else torch.zeros(())
    assert_close(output.auxiliary_loss, expected)
    assert (output.auxiliary_loss.item() > 0) == (name in EXPECTED)
    if not ROUTERS[name].balance_loss_weight:
        assert layer.eval()(x_BTD).auxiliary_loss.item() == 0


def reached_by_losses(layer: RoutedFeedForward, x_BTD: Tensor) -> set[str]:
    """The parameters, and `x`, in which the auxiliary loss has a gradient other than 0."""
    inputs = dict(layer.named_parameters()) | {"x": x_BTD.requires_grad_()}
    found = torch.autograd.grad(layer(x_BTD).auxiliary_loss, list(inputs.values()), allow_unused=True)
    return {name for name, gradient in zip(inputs, found, strict=True) if gradient is not None and gradient.any()}


def test_the_prediction_loss_trains_the_predictor_and_nothing_else(layer_of: LayerOf) -> None:
    reached = reached_by_losses(layer_of(name="diffmoe", num_experts=4), torch.randn(4, 16, 8))
    assert reached == {"router.predictor.w_in.weight", "router.predictor.w_out.weight"}


def test_the_predictor_does_not_change_what_the_rest_learns(layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name="diffmoe", num_experts=4), torch.randn(4, 16, 8)
    expected = gradients(layer, x_BTD)
    torch.nn.init.zeros_(layer.router.predictor.w_out.weight)
    for name, gradient in gradients(layer, x_BTD).items():
        assert torch.equal(gradient, expected[name]) or "predictor" in name


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "diffmoe"])
def test_losses_of_the_router_leave_the_experts_alone(name: str, layer_of: LayerOf) -> None:
    layer = layer_of(name=name, num_experts=4)
    expected = {name for name, _ in layer.named_parameters() if name.startswith("router.")} | {"x"}
    assert reached_by_losses(layer, torch.randn(4, 16, 8)) == expected


def router_gradient(layer: RoutedFeedForward, x_BTD: Tensor, accumulation: int) -> Tensor:
    """The gradient of the balance loss alone, as the mean over micro batches."""
    layer.zero_grad()
    for part_BTD in x_BTD.chunk(accumulation):
        (layer(part_BTD).auxiliary_loss / accumulation).backward()
    gradient = layer.router.weight_DE.grad
    assert gradient is not None
    return gradient.float()


BALANCED = [name for name, row in ROUTERS.items() if row.balance_loss_weight and "z_loss_weight" not in row.settings]


@pytest.mark.parametrize("name", BALANCED)
def test_accumulation_leaves_the_gradient_of_the_balance_loss(name: str, layer_of: LayerOf) -> None:
    """DiT-MoE's public code adds a gradient of 1 in every micro batch, whatever the loss is divided by."""
    layer, x_BTD = layer_of(name=name, num_experts=4, group_images=1, capacity_factor=None), torch.randn(8, 16, 8)
    expected = router_gradient(layer, x_BTD, 1).clone()
    assert_close(router_gradient(layer, x_BTD, 4), expected)
    layer.bfloat16()
    exact = router_gradient(layer, x_BTD.bfloat16(), 1)
    assert float((router_gradient(layer, x_BTD.bfloat16(), 4) - exact).norm()) < 0.02 * float(exact.norm())
    assert float((exact - expected).norm()) < 0.1 * float(expected.norm())


@pytest.mark.parametrize(("scope", "as_one"), [("group", False), ("process", True), ("all", True)])
def test_the_scope_of_the_balance_loss_is_a_group_or_the_batch(scope: str, as_one: bool, layer_of: LayerOf) -> None:
    layer = layer_of(name="shared_expert", num_experts=4, group_images=1, balance_scope=scope, balance_loss_weight=1.0)
    assignment = layer(torch.randn(4, 16, 8)).assignment
    parts = [assignment.logits_NE] if as_one else list(assignment.logits_NE.chunk(4))
    losses = [balance_loss(part.unsqueeze(0), part.topk(2).indices.unsqueeze(0)) for part in parts]
    assert_close(assignment.auxiliary_loss, torch.stack(losses).mean())
