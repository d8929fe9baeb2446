"""Every router against a slow oracle: the equations in loops over tokens and experts, in training and inference.

An oracle says which pairs of token and expert are chosen, and with which gates; the loops of `tests/oracles.py` apply
the experts. A router of the registry without an oracle fails.

Legend: N tokens of the batch, B images, T tokens of an image, E experts, D width.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from statistics import NormalDist, fmean
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.routers import choosing_names
from experiments.config.schema import RunConfig
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward
from experiments.layers.small_layers import gradients_of_loss, settle, small_config, small_context, small_layer
from experiments.routing.contract import RoutingContext
from experiments.routing.state import SelectionBias
from tests import oracles
from tests.oracles import Row, affinities, feed_forward, mix

LAYER = 3


class Scene(NamedTuple):
    """A layer with its input; `logits` are those of each token, computed in loops."""

    layer: RoutedFeedForward
    config: RunConfig
    x_BTD: Tensor
    context: RoutingContext
    training: bool
    logits: list[Tensor]

    @property
    def images(self) -> list[range]:
        """Returns the tokens of each image, numbered over the batch."""
        num_images, size = self.x_BTD.shape[:2]
        return [range(image * size, (image + 1) * size) for image in range(num_images)]

    @property
    def batch(self) -> range:
        """Returns all tokens."""
        return range(len(self.logits))

    @property
    def state(self) -> list[float]:
        """Returns the numbers of the router's state."""
        assert self.layer.router.state is not None
        return next(self.layer.router.state.buffers()).tolist()


Oracle = Callable[[Scene], list[Row]]


def scene_of(settings: dict[str, Any], training: bool) -> Scene:
    layer, x_BTD = small_layer(**settings), torch.randn(4, 12, 8).requires_grad_()
    settle(layer, num_steps=2)
    if isinstance(layer.router.state, SelectionBias):
        torch.nn.init.normal_(layer.router.state.value_E, std=0.3)
    layer.train(training).router.in_layer(LAYER, 1.0)
    position_BT = torch.stack([torch.randperm(20)[:12].sort().values for _ in range(4)])
    context = small_context(x_BTD, num_dropped=1)._replace(position_BT=position_BT)
    has_logits = hasattr(layer.router, "weight_DE")
    logits = logits_of(layer, x_BTD, context) if has_logits else [torch.zeros(0)] * 48
    return Scene(layer, small_config(**settings), x_BTD, context, training, logits)


def logits_of(layer: RoutedFeedForward, x_BTD: Tensor, context: RoutingContext) -> list[Tensor]:
    """The logits of each token, as `routing.input` and `routing.form` ask for."""
    weight_DE, rows = layer.router.weight_DE, []
    for image, x_TD in enumerate(x_BTD):
        for token, z in enumerate(x_TD):
            if layer.router.input == "plain_time":
                time_D, plain_D = context.time_BD[image], context.residual_BTD[image, token]
                time_D = time_D / (sum(value**2 for value in time_D) / len(time_D) + 1e-6).sqrt()
                centred_D = plain_D - sum(plain_D) / len(plain_D)
                z = torch.cat((time_D, centred_D / (sum(value**2 for value in centred_D) / len(plain_D) + 1e-6).sqrt()))
            if layer.router.form == "mlp":
                hidden = [z @ column for column in layer.router.hidden_DD.T]
                z = torch.stack([value / 2 * (1 + torch.erf(value / math.sqrt(2))) for value in hidden])
            columns = list(weight_DE.T)
            if layer.router.form == "cosine":
                z, columns = z / (z @ z).sqrt(), [column / (column @ column).sqrt() for column in columns]
            rows.append(torch.stack([z @ column for column in columns]))
    return rows


def best(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: -scores[place])[:count]


def experts_choose(scene: Scene, gating: str, pools: Iterable[range], capacity: Callable[[range], int]) -> list[Row]:
    """In every pool each expert takes the tokens with the highest affinity to it."""
    rows = []
    for pool in pools:
        wanted = [affinities(scene.logits[token], gating) for token in pool]
        for expert in range(scene.layer.router.num_experts):
            for place in best([each[expert].item() for each in wanted], capacity(pool)):
                rows.append(Row(pool[place], expert, wanted[place][expert]))
    return rows


def slots(scene: Scene) -> Callable[[range], int]:
    """C = floor(S f_c / E)."""
    factor, num_experts = scene.config.routing.capacity_factor, scene.config.routing.num_experts
    assert factor is not None
    return lambda pool: math.floor(len(pool) * factor / num_experts + 1e-9)


def above(scene: Scene, score: list[list[float]], gate: list[list[Tensor]], tau: list[float]) -> list[Row]:
    """Pairs whose score reaches the threshold of the expert."""
    num_experts = scene.config.routing.num_experts
    taus = tau * num_experts if len(tau) == 1 else tau
    return [
        Row(token, expert, gate[token][expert])
        for token in scene.batch
        for expert in range(num_experts)
        if score[token][expert] >= taus[expert]
    ]


def numbers(rows: list[list[Tensor]]) -> list[list[float]]:
    return [[value.item() for value in row] for row in rows]


def ec_dit(scene: Scene) -> list[Row]:
    return experts_choose(scene, "softmax", scene.images, slots(scene))


def moma(scene: Scene) -> list[Row]:
    return experts_choose(scene, "sigmoid", [scene.batch], slots(scene))


def nucleus(scene: Scene) -> list[Row]:
    """The raw gates of EC-DIT from another input, over the sum of the token's gates, times 2.5."""
    return normalised(ec_dit(scene), 2.5)


def normalised(rows: list[Row], scale: float) -> list[Row]:
    total = {row.token: sum(other.weight for other in rows if other.token == row.token) for row in rows}
    return [Row(row.token, row.expert, scale * row.weight / total[row.token]) for row in rows]


def gshard(scene: Scene) -> list[Row]:
    factors = {True: scene.config.routing.capacity_factor, False: scene.config.routing.eval_capacity_factor}
    factor = factors[True] if factors[scene.training] == "same" else factors[scene.training]
    capacity = math.ceil(len(scene.batch) * float(factor or 0) / scene.config.routing.num_experts)
    return oracles.gshard_top_2(torch.stack(scene.logits), capacity).table


def switch(scene: Scene) -> list[Row]:
    return oracles.switch(torch.stack(scene.logits)).table


def dit_moe(scene: Scene) -> list[Row]:
    return oracles.shared_expert(torch.stack(scene.logits), 2, None, "softmax").table


def loss_free(scene: Scene) -> list[Row]:
    """Each token takes the two experts with the largest s + b, and the gates are s."""
    rows = []
    for token in scene.batch:
        score = affinities(scene.logits[token], "sigmoid")
        biased = [value.item() + bias for value, bias in zip(score, scene.state, strict=True)]
        rows += [Row(token, expert, score[expert]) for expert in best(biased, 2)]
    return rows


def dsmoe(scene: Scene) -> list[Row]:
    return normalised(loss_free(scene), 2.0)


def captioned(scene: Scene, rows: list[Row]) -> list[Row]:
    """Without the tokens of images that have no caption."""
    dropped = {
        token for tokens, drop in zip(scene.images, scene.context.dropped_B, strict=True) if drop for token in tokens
    }
    return [row for row in rows if row.token not in dropped]


def promoe(scene: Scene) -> list[Row]:
    choices = [best([value.item() for value in scene.logits[token]], 1)[0] for token in scene.batch]
    return captioned(scene, [Row(token, e, scene.logits[token][e]) for token, e in enumerate(choices)])


def promoe_ec(scene: Scene) -> list[Row]:
    return captioned(scene, experts_choose(scene, "identity", scene.images, slots(scene)))


def diffmoe(scene: Scene) -> list[Row]:
    """Training: experts choose from all tokens. Inference: sigmoid(W2 SiLU(W1 x)) reaches tau_e."""
    if scene.training:
        return experts_choose(scene, "softmax", [scene.batch], slots(scene))
    predictor = scene.layer.router.predictor
    scores = []
    for x_D in scene.x_BTD.flatten(0, 1):
        hidden = predictor.w_in.weight @ x_D
        scores.append(
            [value.item() for value in 1 / (1 + (-(predictor.w_out.weight @ (hidden / (1 + (-hidden).exp())))).exp())]
        )
    return above(scene, scores, [affinities(logits_E, "softmax") for logits_E in scene.logits], scene.state)


def noise_capacity(scene: Scene) -> list[Row]:
    """C(t) = C (0.4 + 0.6 (1 - t) / E[1 - t]), where logit t is normal; gates of a token sum to 1.

    The mean is taken over quantiles.
    """
    flow = scene.config.flow
    normal = NormalDist(flow.time_mean, flow.time_std)
    mean = fmean(1 / (1 + math.exp(-normal.inv_cdf((step + 0.5) / 20_000))) for step in range(20_000))

    def capacity(pool: range) -> int:
        time = float(scene.context.time_B[scene.images.index(pool)])
        exact = (0.4 + 0.6 * (1 - time) / (1 - mean)) * len(pool) * 2.0 / 8
        return max(1, min(len(pool), round(exact)))

    return normalised(experts_choose(scene, "softmax", scene.images, capacity), 1.0)


def race(scene: Scene) -> list[Row]:
    """Training: the K = N f_c pairs with the largest logits of all. Inference: logits that reach tau."""
    gates = [list(logits_E) for logits_E in scene.logits]
    if not scene.training:
        return above(scene, numbers(gates), gates, scene.state)
    pairs = [(token, expert) for token in scene.batch for expert in range(8)]
    winners = best([gates[token][expert].item() for token, expert in pairs], 2 * len(scene.batch))
    return [Row(*pairs[place], gates[pairs[place][0]][pairs[place][1]]) for place in winners]


def threshold(scene: Scene) -> list[Row]:
    """The logits decide and their sigmoids weigh: experts compete in the warm start, and then logits reach tau_e."""
    if scene.training and scene.config.routing.threshold_warmup_images:
        return experts_choose(scene, "sigmoid", [scene.batch], slots(scene))
    gates = [affinities(logits_E, "sigmoid") for logits_E in scene.logits]
    return above(scene, numbers([list(logits_E) for logits_E in scene.logits]), gates, scene.state)


def segmoe(scene: Scene) -> list[Row]:
    """The two experts with the largest sums of logits serve all tokens, each by the softmax over its own two logits."""
    sums = [sum(logits_E[expert].item() for logits_E in scene.logits) for expert in range(8)]
    chosen = best(sums, 2)
    return [
        Row(token, expert, gate)
        for token, logits_E in enumerate(scene.logits)
        for expert, gate in zip(chosen, affinities(logits_E[chosen], "softmax"), strict=True)
    ]


def fixed(scene: Scene, expert_of: Callable[[float, int], int]) -> list[Row]:
    """One expert for each token, with gate 1, from the t of its image and its position."""
    return [
        Row(token, expert_of(float(time), int(position)), torch.ones(()))
        for tokens, time, position_T in zip(scene.images, scene.context.time_B, scene.context.position_BT, strict=True)
        for token, position in zip(tokens, position_T, strict=True)
    ]


def wrapped(number: int) -> int:
    """The signed 64-bit number that products wrap to."""
    return (number + 2**63) % 2**64 - 2**63


def mixed(number: int) -> int:
    number = wrapped(number * 0x1F85EBCA6B)
    number = wrapped((number ^ (number >> 31)) * 0x27D4EB2F16)
    return ((number ^ (number >> 29)) & (2**62 - 1)) >> 8


def timestep(scene: Scene) -> list[Row]:
    return fixed(scene, lambda time, position: min(2, math.floor(time * 3)))


def by_position(scene: Scene) -> list[Row]:
    return fixed(scene, lambda time, position: (mixed(position // 8 + LAYER) + position) % 8)


def at_random(scene: Scene) -> list[Row]:
    def expert_of(time: float, position: int) -> int:
        (bits,) = struct.unpack("i", struct.pack("f", time))
        return mixed(mixed(bits + 7919 * LAYER) + position) % 8

    return fixed(scene, expert_of)


ORACLES: dict[str, Oracle] = {
    "expert_choice": ec_dit, "token_choice": gshard, "switch": switch, "shared_expert": dit_moe, "st_moe": gshard,
    "loss_free": loss_free, "dsmoe": dsmoe, "promoe": promoe, "promoe_ec": promoe_ec, "diffmoe": diffmoe,
    "nucleus": nucleus, "ec_noise_capacity": noise_capacity, "moma": moma, "expert_race": race,
    "expert_threshold": threshold, "segmoe": segmoe, "timestep_experts": timestep, "hash": by_position,
    "random": at_random,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ORACLES},
    # A full expert of Switch keeps whichever tokens `topk` picks among equals, so that it has room for all here.
    "switch": {"name": "switch", "capacity_factor": 8.0},
    "expert_threshold without a warm start": {"name": "expert_threshold", "threshold_warmup_images": 0},
}


def test_every_router_has_an_oracle() -> None:
    assert set(ORACLES) == set(choosing_names())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_pairs_gates_and_results_are_those_of_the_equations(settings: dict[str, Any], training: bool) -> None:
    scene = scene_of(settings, training)
    layer, rows = scene.layer, ORACLES[settings["name"]](scene)
    output = layer(scene.x_BTD, scene.context)
    assignment = output.assignment
    assert {tuple(pair) for pair in assignment.chosen_NE.nonzero().tolist()} == {
        (row.token, row.expert) for row in rows
    }
    gates_NE = torch.zeros(48, layer.router.num_experts)
    gates_M = layer.gates.plain(assignment.weight_M, assignment.token_M, 48)
    gates_NE.index_put_((assignment.token_M, assignment.expert_M), gates_M.detach(), accumulate=True)
    expected_NE = torch.zeros_like(gates_NE)
    for token, expert, weight in rows:
        expected_NE[token, expert] = weight.detach()
    assert_close(gates_NE, expected_NE)
    expected_BTD = by_loops(scene, rows)
    assert_close(output.out_BTD, expected_BTD)
    no_loss = torch.zeros(())
    expected = gradients_of_loss(layer, scene.x_BTD, expected_BTD, no_loss)
    for parameter, gradient in gradients_of_loss(layer, scene.x_BTD, output.out_BTD, no_loss).items():
        assert_close(
            gradient, expected[parameter], rtol=1e-4, atol=1e-5, msg=lambda text, at=parameter: f"{at}: {text}"
        )


def by_loops(scene: Scene, rows: list[Row]) -> Tensor:
    """The output of the layer: routed experts, shared ones, and those of images without a caption."""
    layer, activation = scene.layer, scene.config.routing.expert or ""
    x_ND = scene.x_BTD.flatten(0, 1)
    stacked = (layer.experts.w_in_EFD, layer.experts.w_out_EFD, layer.experts.b_in_EF, layer.experts.b_out_ED)
    out_ND = mix(x_ND, rows, [weight for weight in stacked if weight is not None], activation)
    if layer.shared is not None:
        out_ND = out_ND + torch.stack([feed_forward(x_D, weights_of(layer.shared), activation) for x_D in x_ND])
    if layer.unconditional is not None:
        weights = weights_of(layer.unconditional)
        alone = [
            feed_forward(x_D, weights, activation) if scene.context.dropped_B[token // 12] else torch.zeros(8)
            for token, x_D in enumerate(x_ND)
        ]
        out_ND = out_ND + torch.stack(alone)
    return out_ND.view_as(scene.x_BTD)


def weights_of(layer: DenseFeedForward) -> list[Tensor]:
    """Both matrices, [F, D] each, and the biases where the layer has them."""
    biases = [linear.bias for linear in (layer.w_in, layer.w_out) if linear.bias is not None]
    return [layer.w_in.weight, layer.w_out.weight.T, *biases]
