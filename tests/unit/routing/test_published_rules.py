"""The rules of published routers by literal numbers, which follow from the papers' equations by hand.

The router's weight is the identity where a test does not say otherwise, so that the tokens are the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.routers import ROUTERS, routing_defaults
from experiments.config.routing_checks import check_axes
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.gates import Gates
from experiments.routing.contract import Assignment, RoutingContext
from experiments.routing.losses import contrastive_loss, prediction_loss, similarity_loss
from experiments.routing.router import Router
from experiments.routing.state import RunningThreshold

LayerOf = Callable[..., RoutedFeedForward]

PUBLISHED: dict[str, dict[str, Any]] = {
    "expert_choice": {"capacity_factor": 2.0, "group_images": 1, "gating": "softmax"},
    "shared_expert": {"top_k": 2, "shared_factor": 2.0, "balance_loss_weight": 0.005, "expert": "swiglu"},
    "st_moe": {
        "top_k": 2, "capacity_factor": 1.25, "eval_capacity_factor": 2.0, "balance_loss_weight": 0.01,
        "z_loss_weight": 0.001,
    },
    "loss_free": {"gating": "sigmoid", "bias_update_rate": 0.001, "balance_loss_weight": 0.0},
    "dsmoe": {
        "num_experts": 16, "top_k": 2, "expert_factor": 2.0, "shared_factor": 2.0, "gate_norm": "token",
        "gate_scale": 2.0, "gating": "sigmoid", "expert": "swiglu",
    },
    "promoe": {
        "num_experts": 12, "top_k": 1, "expert_factor": 2.0, "shared_factor": 2.0, "form": "cosine",
        "gating": "identity", "contrastive_loss_weight": 1.0, "expert": "gelu", "unconditional_expert": True,
    },
    "promoe_ec": {
        "num_experts": 12, "capacity_factor": 1.0, "group_images": 1, "expert_factor": 2.0, "shared_factor": 2.0,
        "form": "cosine", "gating": "identity", "contrastive_loss_weight": 1.0, "unconditional_expert": True,
    },
    "diffmoe": {
        "capacity_factor": 1.0, "group_images": "batch", "gating": "softmax", "predictor_loss_weight": 1.0,
        "eval_decision": "predictor", "expert": "gelu",
    },
    "nucleus": {"gate_norm": "token", "gate_scale": 2.5, "input": "plain_time", "group_images": 1, "expert": "swiglu"},
    "ec_noise_capacity": {"capacity_schedule": "low_noise", "gate_norm": "token", "z_loss_weight": 0.001},
    "moma": {"capacity_factor": 1.0, "gating": "sigmoid", "group_images": "batch"},
    "expert_race": {
        "gating": "identity", "form": "mlp", "similarity_loss_weight": 0.0001, "group_images": "all",
        "eval_decision": "threshold",
    },
    "expert_threshold": {
        "num_experts": 16, "capacity_factor": 1.0, "gating": "sigmoid", "expert_factor": 2.0, "shared_factor": 2.0,
        "threshold_decay": 0.999,
    },
}  # fmt: skip
"""What the papers or their public code say of each router, where the row does not take the value of EC-DIT."""


@pytest.fixture
def router_of(layer_of: LayerOf) -> Callable[..., Router]:
    """A router of two experts over tokens of width two whose weight is the identity, in training mode."""

    def build(**routing: Any) -> Router:
        router = layer_of(**{"width": 2, "num_experts": 2} | routing).router
        torch.nn.init.eye_(router.weight_DE)
        return router.train()

    return build


def pairs(assignment: Assignment) -> dict[tuple[int, int], float]:
    """The weight of each pair of token and expert that was chosen."""
    slots = zip(assignment.token_M.tolist(), assignment.expert_M.tolist(), assignment.weight_M.tolist(), strict=True)
    return {(token, expert): round(weight, 4) for token, expert, weight in slots}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_have_the_published_values(name: str) -> None:
    defaults = routing_defaults({"name": name})
    assert {key: defaults[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert ROUTERS[name].source, "the row says where its values are from"


def test_thresholds_follow_with_the_published_decay(config_of: Callable[..., RunConfig]) -> None:
    """DiffMoE's public code and those of Expert Race keep 0.95 of the old threshold at each step."""
    assert {config_of(name=name).routing.threshold_decay for name in ("diffmoe", "expert_race")} == {0.95}


def test_promoe_contrasts_within_a_group() -> None:
    """In the second group centroids have changed places, so that the loss of each of its experts is 1 / 0.07."""
    x_GSD = torch.eye(2).expand(2, 2, 2)
    chosen_GSE = torch.stack([torch.eye(2), torch.eye(2).flip(0)]).bool()
    assert float(contrastive_loss(x_GSD, torch.eye(2), chosen_GSE)) == pytest.approx(1 / 0.07 / 2, rel=1e-5)
    joined = contrastive_loss(x_GSD.reshape(1, 4, 2), torch.eye(2), chosen_GSE.reshape(1, 4, 2))
    assert float(joined) == pytest.approx(log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "second_image", "expected"),
    [
        # Experts choose in each image: the loss is 0 in the first image and log 2 in the second.
        ("promoe_ec", [[1.0, 1.0], [1.0, 1.0]], log(2) / 2),
        # Tokens choose, and the batch has the centroids (1, 0.45) and (0.45, 1): the cosines are 0.91192 and 0.41036.
        ("promoe", [[1.0, 0.9], [0.9, 1.0]], log(1 + exp((0.41036 - 0.91192) / 0.07))),
    ],
)
def test_promoe_takes_centroids_where_it_chooses(
    router_of: Callable[..., Router], name: str, second_image: list[list[float]], expected: float
) -> None:
    x_BTD = torch.stack([torch.eye(2), torch.tensor(second_image)])
    loss = router_of(name=name)(x_BTD).auxiliary_loss
    assert loss is not None
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "slots"), [("low_noise", [32, 26, 20, 14, 8]), ("high_noise", [8, 14, 20, 26, 32])]
)
def test_capacity_by_noise_is_linear_as_in_ec_dlm(layer_of: LayerOf, schedule: str, slots: list[int]) -> None:
    """EC-DLM's k goes from 8 to 32 with a mean of 20; here t has the mean 1/2 and C = 40 x 2 / 4 = 20."""
    router = layer_of(name="ec_noise_capacity", num_experts=4, capacity_factor=2.0, capacity_schedule=schedule).router
    x_BTD = torch.randn(5, 40, 8)
    context = RoutingContext.of_a_layer_alone(x_BTD)._replace(time_B=torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    counts_BE = router(x_BTD, context).chosen_NE.view(5, 40, 4).sum(dim=1)
    assert counts_BE.tolist() == [[count] * 4 for count in slots]


def test_expert_threshold_averages_logits(router_of: Callable[..., Router]) -> None:
    """The mean of 2 and 4 is 3; the mean of their sigmoids belongs to the logit 2.69, which would let 2.9 through."""
    router = router_of(name="expert_threshold", capacity_factor=1.0, threshold_warmup_images=0)
    for logit in (2.0, 4.0):
        observed = router(torch.tensor([[[logit, logit], [-9.0, -9.0]]])).observed
        assert observed is not None
        assert router.state is not None
        router.state.update(observed)
    assert pairs(router.eval()(torch.tensor([[[2.9, 3.1]]]))) == {(0, 1): 0.9569}


@pytest.mark.parametrize(("seen", "is_warm"), [(319, True), (320, False)])
def test_experts_compete_before_their_thresholds_decide(
    router_of: Callable[..., Router], seen: int, is_warm: bool
) -> None:
    """Both thresholds are out of reach, and yet each expert takes its better token while the start is warm."""
    router = router_of(name="expert_threshold", capacity_factor=1.0, threshold_warmup_images=320)
    assert router.state is not None
    router.state.update(torch.tensor([50.0, 50.0]))
    router.images_seen = seen
    x_BTD = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    assert pairs(router(x_BTD)) == ({(0, 0): 0.7311, (1, 1): 0.8808} if is_warm else {})
    assert pairs(router.eval()(x_BTD)) == {}


def test_similarity_loss_of_two_tokens() -> None:
    """P' is [[13/16, 7/16], [7/16, 5/16]] and M' is [[2, 1], [1, 1]], so that W is [[4/3, 1], [1, 2/3]]."""
    logits_NE = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    chosen_NE = torch.tensor([[True, True], [True, False]])
    assert float(similarity_loss(logits_NE, chosen_NE)) == pytest.approx(13 / 12)


def test_diffmoe_decides_by_its_predictor_and_weighs_by_its_affinities(layer_of: LayerOf) -> None:
    router = layer_of(name="diffmoe", width=2, num_experts=2).router.eval()
    torch.nn.init.eye_(router.weight_DE)
    predictor = router.get_submodule("predictor")
    for layer in predictor.children():
        torch.nn.init.eye_(layer.weight)  # type: ignore[arg-type]
    assert isinstance(router.state, RunningThreshold)
    router.state.update(torch.tensor([0.6, 0.9]))
    # SiLU(1) = 0.7311 and SiLU(3) = 2.8577, whose sigmoids are 0.6750 and 0.9457; the gates are softmax(1, 3).
    assert pairs(router(torch.tensor([[[1.0, 3.0]]]))) == {(0, 0): 0.1192, (0, 1): 0.8808}
    # SiLU(1.5) = 1.2264 has the sigmoid 0.7732, which is below 0.9: the expert with the larger gate is not taken.
    assert pairs(router(torch.tensor([[[1.0, 1.5]]]))) == {(0, 0): 0.3775}


def test_the_predictor_pays_the_mean_cross_entropy() -> None:
    prediction_NE, chosen_NE = torch.tensor([[0.0, log(3)]]), torch.tensor([[True, False]])
    assert float(prediction_loss(prediction_NE, chosen_NE)) == pytest.approx((log(2) + log(4)) / 2)


def test_dsmoe_chooses_with_the_bias_and_weighs_without(router_of: Callable[..., Router]) -> None:
    """The sigmoids are 0.5, 0.6 and 0.7; with a bias of 0.25 the first expert is chosen before the second."""
    router = router_of(name="dsmoe", num_experts=3, width=3, top_k=2)
    assert router.state is not None
    router.state.get_buffer("value_E").copy_(torch.tensor([0.25, 0.0, 0.0]))
    x_BTD = torch.tensor([[[0.5, 0.6, 0.7]]]).logit()
    assert pairs(router(x_BTD)) == {(0, 0): 0.5, (0, 2): 0.7}


@pytest.mark.parametrize(("name", "weights", "expected"), [
    ("dsmoe", [0.5, 0.7], [0.8333, 1.1667]),
    ("nucleus", [0.6, 0.4], [1.5, 1.0]),
    ("ec_noise_capacity", [0.3, 0.1], [0.75, 0.25]),
])  # fmt: skip
def test_gates_of_a_token_have_the_published_sum(
    config_of: Callable[..., RunConfig], name: str, weights: list[float], expected: list[float]
) -> None:
    gates_M = Gates.of(config_of(name=name)).plain(torch.tensor(weights), torch.zeros(2, dtype=torch.int64), 1)
    assert gates_M.tolist() == pytest.approx(expected, abs=1e-4)


def test_moma_takes_its_share_of_the_batch_by_sigmoid(router_of: Callable[..., Router]) -> None:
    """Each of 2 experts takes 2 of the 4 tokens in the batch; those of the first expert are both in the first image."""
    x_BTD: Tensor = torch.tensor([[[0.9, 0.2], [0.8, 0.6]], [[0.3, 0.7], [0.1, 0.4]]]).logit()
    assert pairs(router_of(name="moma")(x_BTD)) == {(0, 0): 0.9, (1, 0): 0.8, (1, 1): 0.6, (2, 1): 0.7}


def test_only_thresholds_have_a_warm_start(config_of: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"routing\.threshold_warmup_images=1 does not fit .*compete in all of"):
        check_axes(config_of(name="diffmoe", threshold_warmup_images=1))
