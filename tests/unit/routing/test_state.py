"""Thresholds and biases: their update rules by hand, their float32, and what they settle at."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from experiments.config.routers import ROUTERS
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.small_layers import small_context
from experiments.routing.state import RouterState, RunningThreshold, SelectionBias

LayerOf = Callable[..., RoutedFeedForward]
THRESHOLDS: dict[str, dict[str, Any]] = {
    "expert_race": {"name": "expert_race", "capacity_factor": 2.0},
    "expert_threshold": {"name": "expert_threshold", "capacity_factor": 2.0},
    "diffmoe": {"name": "diffmoe", "capacity_factor": 1.0},
    "moma with thresholds": {"name": "moma", "capacity_factor": 1.0, "eval_decision": "threshold"},
    "expert_choice with thresholds": {"name": "expert_choice", "eval_decision": "threshold"},
}


def test_a_threshold_begins_as_the_mean_of_what_it_has_seen() -> None:
    state = RunningThreshold(2, decay=0.95)
    means = []
    for observed in ([4.0, 1.0], [0.0, 3.0], [8.0, -1.0]):
        state.update(torch.tensor(observed))
        means.append(state.value_K.tolist())
    assert means == [[4.0, 1.0], [2.0, 2.0], pytest.approx([4.0, 1.0])]
    assert int(state.num_updates) == 3


@pytest.mark.parametrize("settings", THRESHOLDS.values(), ids=THRESHOLDS.keys())
def test_before_the_first_step_no_threshold_decides(settings: dict[str, Any], layer_of: LayerOf) -> None:
    """Thresholds of 0 would give every token to every expert."""
    torch.manual_seed(0)
    layer, x_BTD = layer_of(num_experts=4, **settings).eval(), torch.randn(4, 16, 8)
    planned = 4 * 16 * (settings.get("capacity_factor") or 2.0)
    assert len(layer(x_BTD).assignment.token_M) == planned
    layer.router.state.update(torch.full_like(layer.router.state.value_K, -1e9))
    assert len(layer(x_BTD).assignment.token_M) == 4 * 16 * 4  # from then on thresholds decide


def test_later_a_threshold_follows_with_its_decay() -> None:
    state = RunningThreshold(1, decay=0.75)
    for observed in (4.0, 0.0, 2.0, 6.0):  # shares 1, 1/2, 1/3, 1/4
        state.update(torch.tensor([observed]))
    assert state.value_K.tolist() == pytest.approx([3.0])
    for observed, expected in ((7.0, 4.0), (0.0, 3.0), (-1.0, 2.0)):  # 0.75 of what was, and 0.25 of what is new
        state.update(torch.tensor([observed]))
        assert state.value_K.tolist() == pytest.approx([expected])


def test_a_bias_rises_where_load_is_missing_and_keeps_the_mean_0() -> None:
    state = SelectionBias(4, update_rate=0.001)
    state.update(torch.tensor([10.0, 2.0, 3.0, 1.0]))  # the mean load is 4: -u, +u, +u, +u, less their mean u / 2
    assert state.value_E.tolist() == pytest.approx([-0.0015, 0.0005, 0.0005, 0.0005])
    state.update(torch.tensor([1.0, 3.0, 2.0, 2.0]))  # the mean load is 2: +u, -u, 0, 0
    assert state.value_E.tolist() == pytest.approx([-0.0005, -0.0005, 0.0005, 0.0005])
    state.update(torch.full((4,), 7.0))
    assert state.value_E.tolist() == pytest.approx([-0.0005, -0.0005, 0.0005, 0.0005])


def test_a_bias_evens_out_loads(layer_of: LayerOf) -> None:
    """Expert 0 wants most tokens more than all others do."""
    layer, tokens = layer_of(name="loss_free", num_experts=4, top_k=1, bias_update_rate=0.01), torch.randn(8, 32, 8)
    tokens[..., 0] = tokens[..., 0].abs() + 1
    with torch.no_grad():
        layer.router.weight_DE[0, 0] += 3
    shares = []
    for _ in range(80):
        observed = layer(tokens).assignment.observed
        assert observed.sum() == 8 * 32
        layer.router.state.update(observed)
        shares.append(float(observed.max() / observed.mean()))
    assert shares[0] > 2
    assert max(shares[-5:]) < 1.3


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_a_bias_sees_the_choices_of_tokens_that_have_a_caption(
    capacity_factor: float | None, layer_of: LayerOf
) -> None:
    """Choices beyond the capacity count, as they are what the bias shall move."""
    settings = {"unconditional_expert": True, "capacity_factor": capacity_factor}
    layer, x_BTD = layer_of(name="loss_free", num_experts=4, **settings), torch.randn(4, 16, 8)
    assignment = layer(x_BTD, small_context(x_BTD, num_dropped=1)).assignment
    assert (
        assignment.observed.tolist()
        == assignment.logits_NE[16:].topk(2).indices.flatten().bincount(minlength=4).tolist()
    )
    if capacity_factor is None:
        assert assignment.observed.tolist() == assignment.tokens_per_expert_E.tolist()


def test_a_bias_decides_and_does_not_weigh(layer_of: LayerOf) -> None:
    layer, x_BTD = layer_of(name="loss_free", num_experts=4, top_k=1), torch.randn(2, 16, 8)
    with torch.no_grad():
        layer.router.state.value_E.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    assignment = layer(x_BTD).assignment
    assert assignment.tokens_per_expert_E.tolist() == [0, 0, 32, 0]
    assert_close(assignment.weight_M, assignment.logits_NE[:, 2].sigmoid())


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.double, nn.Module.float])
@pytest.mark.parametrize("kind", [RunningThreshold, SelectionBias])
def test_a_state_keeps_float32_in_a_model_that_is_cast(
    kind: Callable[..., RouterState], cast: Callable[[nn.Module], Any]
) -> None:
    state = kind(3, 0.95)
    model = nn.Sequential(nn.Linear(2, 2), state)
    value = next(state.buffers())
    value.copy_(torch.tensor([1.001, 1 / 3, -2.0]))
    before = value.clone()
    cast(model)
    assert model[0].weight.dtype == {nn.Module.bfloat16: torch.bfloat16, nn.Module.half: torch.half,
                                     nn.Module.double: torch.double}.get(cast, torch.float32)  # fmt: skip
    assert torch.equal(next(state.buffers()), before)
    assert next(state.buffers()).dtype == torch.float32
    model.to("meta", torch.bfloat16)
    assert next(state.buffers()).dtype == torch.float32
    assert next(state.buffers()).device.type == "meta"


@pytest.mark.parametrize("name", [name for name, row in ROUTERS.items() if row.rule in ("pairs", "thresholds")])
def test_thresholds_converge_to_the_quantile_of_a_fixed_distribution(name: str, layer_of: LayerOf) -> None:
    """The logits are standard normal, and one pair of four is to pass."""
    layer = layer_of(
        name=name, num_experts=4, capacity_factor=1.0, form="linear", gating="identity", threshold_decay=0.99
    )
    with torch.no_grad():
        layer.router.weight_DE.copy_(torch.eye(8)[:, :4])
    for _ in range(100):
        layer.router.state.update(layer(torch.randn(4, 64, 8)).assignment.observed)
    assert_close(layer.router.state.value_K, torch.full_like(layer.router.state.value_K, NormalDist().inv_cdf(0.75)),
                 rtol=0, atol=0.03)  # fmt: skip


@pytest.mark.parametrize("settings", THRESHOLDS.values(), ids=THRESHOLDS.keys())
def test_settled_thresholds_let_as_many_pairs_through_as_planned(settings: dict[str, Any], layer_of: LayerOf) -> None:
    """On i.i.d. tokens, as the mean over many batches; single batches differ."""
    layer, tokens = layer_of(num_experts=8, threshold_decay=0.99, group_images="batch", **(settings)), 4 * 64
    for _ in range(60):
        layer.router.state.update(layer(torch.randn(4, 64, 8)).assignment.observed)
    layer.eval()
    counts = [layer(torch.randn(4, 64, 8)).assignment.num_slots / tokens for _ in range(60)]
    assert sum(counts) / len(counts) == pytest.approx(layer.router.factor(), rel=0.05)
    assert max(counts) > min(counts)


def test_before_the_first_step_an_expert_threshold_is_that_of_the_batch(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_threshold", num_experts=4, capacity_factor=1.0)
    assert layer(torch.randn(4, 16, 8)).tokens_per_expert_E.tolist() == [16] * 4


def test_a_model_that_decides_as_in_training_competes_and_observes_nothing(layer_of: LayerOf) -> None:
    for name in ("diffmoe", "expert_race"):
        layer, x_BTD = layer_of(name=name, num_experts=4, capacity_factor=1.0).eval(), torch.randn(4, 16, 8)
        layer.router.state.update(torch.zeros_like(layer.router.state.value_K))
        assert layer(x_BTD).assignment.num_slots != 64
        layer.router.decides_as_in_training = True
        assignment = layer(x_BTD).assignment
        assert assignment.num_slots == 64
        assert assignment.observed is None


def test_what_thresholds_observe_is_the_least_value_that_is_taken(layer_of: LayerOf) -> None:
    x_BTD = torch.randn(4, 16, 8)
    race = layer_of(name="expert_race", num_experts=4, capacity_factor=1.0)(x_BTD).assignment
    assert_close(race.observed, race.logits_NE.flatten().sort(descending=True).values[63].view(1))
    moma = layer_of(name="moma", num_experts=4, eval_decision="threshold")(x_BTD).assignment
    taken = moma.logits_NE.sigmoid().masked_fill(~moma.chosen_NE, 2.0)
    assert_close(moma.observed, taken.amin(dim=0))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "expert_race"},
        {"name": "diffmoe"},
        {"name": "expert_choice", "eval_decision": "threshold"},
    ],
    ids=lambda settings: str(settings["name"]),
)
def test_a_batch_without_a_caption_leaves_the_thresholds_where_they_are(
    settings: dict[str, Any], layer_of: LayerOf
) -> None:
    """An unconditional expert takes all of its tokens. Before the first step such a batch is better than no batch."""
    layer, x_BTD = layer_of(num_experts=4, unconditional_expert=True, group_images=1, **settings), torch.randn(4, 16, 8)
    with_captions = layer(x_BTD, small_context(x_BTD)).assignment.observed
    nobody = small_context(x_BTD, num_dropped=4)
    assert_close(layer(x_BTD, nobody).assignment.observed, with_captions)
    layer.router.state.update(with_captions + 1)
    assert_close(layer(x_BTD, nobody).assignment.observed, with_captions + 1)


def test_the_capacity_falls_from_all_experts_to_its_value(layer_of: LayerOf) -> None:
    layer = layer_of(name="expert_choice", num_experts=4, capacity_factor=1.0, capacity_warmup_images=100)
    found: dict[int, Tensor] = {}
    for images_seen in (0, 50, 100, 500):
        layer.router.images_seen = images_seen
        found[images_seen] = layer(torch.randn(2, 16, 8)).tokens_per_expert_E
    assert {seen: loads_E.tolist() for seen, loads_E in found.items()} == {
        0: [32] * 4, 50: [20] * 4, 100: [8] * 4, 500: [8] * 4,
    }  # fmt: skip
    layer.router.images_seen = 0
    assert layer.eval()(torch.randn(2, 16, 8)).tokens_per_expert_E.tolist() == [8] * 4
