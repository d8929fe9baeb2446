"""The properties that every router has, each as a function that raises `BrokenPropertyError` where it does not hold.

`ecdit check-router NAME` and the unit tests go through the same list, so that a plugin is held to what holds for the
routers of this project. The layers are small (`small_layers.py`) and run on a CPU; inputs are drawn from a fixed seed.
What only some rules promise is required of those (`experiments/config/router_row.py` names the families of rules).

Legend: as in `routing/contract.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.config.budget import expert_capacity
from experiments.config.routers import ROUTERS
from experiments.errors import EcditError
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward
from experiments.layers.order_properties import (
    images_change_places_with_their_results,
    images_without_a_caption_leave_the_routed_experts_alone,
    in_groups_of_one_no_image_changes_another,
    in_inference_an_image_alone_is_as_in_a_batch,
)
from experiments.layers.small_layers import (
    NUM_EXPERTS,
    NUM_IMAGES,
    NUM_TOKENS,
    WIDTH,
    assignment_of,
    filled_slots,
    gradients,
    prefer,
    require,
    require_close,
    settle,
    small_layer,
    small_tokens,
)
from experiments.layers.state_properties import (
    a_forward_pass_changes_no_state,
    a_loaded_layer_continues_with_the_same_bits,
    decisions_are_made_in_float32,
    recomputation_gives_the_same_gradients,
    the_same_input_gives_the_same_bits,
)

GROUPS: tuple[int | str, ...] = (1, 2, "batch")
NEUTRAL = {
    "shared_factor": 0.0, "capacity_schedule": "none", "unconditional_expert": False, "contrastive_loss_weight": 0.0,
}  # fmt: skip
"""The values at which these settings add nothing. With others a layer of one expert is not the dense layer."""


def answers_have_the_shapes_of_the_contract(name: str) -> None:
    """Requires that every slot names a token of the batch, and that every field has its shape and type."""
    for settings, training, num_images in _cases(name):
        layer, x_BTD = small_layer(**settings).train(training), small_tokens(num_images)
        output = layer(x_BTD)
        assignment, case = output.assignment, f"in {_mode(training)} with {_shown(settings)}"
        num_slots, num_tokens = assignment.token_M.shape[0], num_images * NUM_TOKENS
        forms: dict[str, tuple[Tensor | None, tuple[int, ...], torch.dtype]] = {
            "out_BTD": (output.out_BTD, tuple(x_BTD.shape), x_BTD.dtype),
            "token_M": (assignment.token_M, (num_slots,), torch.int64),
            "weight_M": (assignment.weight_M, (num_slots,), torch.float32),
            "filled_M": (assignment.filled_M, (num_slots,), torch.bool),
            "slots_E": (assignment.slots_E, (NUM_EXPERTS,), torch.int64),
            "logits_NE": (assignment.logits_NE, (num_tokens, NUM_EXPERTS), torch.float32),
            "auxiliary_loss": (output.auxiliary_loss, (), torch.float32),
            "unconditional_N": (assignment.unconditional_N, (num_tokens,), torch.bool),
        }
        for field, (value, shape, dtype) in forms.items():
            is_right = value is None or (tuple(value.shape) == shape and value.dtype == dtype)
            require(is_right, f"{field} is not {dtype} {list(shape)} {case}")
        require(int(assignment.tokens_per_expert_E.sum()) <= num_slots, f"more tokens than slots {case}")
        require(bool(output.out_BTD.isfinite().all()), f"outputs are not finite {case}")
        learns = training and layer.router.state is not None
        require((assignment.observed is not None) == learns, f"observed is not as the router's state needs it {case}")
        if assignment.observed is not None:
            is_right = assignment.observed.dtype == torch.float32 and not assignment.observed.requires_grad
            require(is_right, f"observed is not detached float32 {case}")


def one_expert_with_full_capacity_is_the_dense_layer(name: str) -> None:
    """Requires that a single expert with room for every token computes and learns what a dense layer does.

    The result is that of the dense layer times the gate of the token, which is 1 where a softmax makes it.
    """
    row = ROUTERS[name]
    only: dict[str, Any] = {"top_k": 1} if row.top_k is not None else {}
    only |= {key: value for key, value in NEUTRAL.items() if row.defaults.get(key)}
    for expert, expert_bias in (("gelu", False), ("swiglu", False), ("gelu", True), ("swiglu", True)):
        for group_images in GROUPS:
            only |= {"expert": expert, "expert_bias": expert_bias, "group_images": group_images}
            layer = small_layer(name=name, num_experts=1, capacity_factor=1.0, **only)
            dense = _dense_copy(layer)
            x_BTD, direction_BTD = small_tokens().requires_grad_(), torch.randn(NUM_IMAGES, NUM_TOKENS, WIDTH)
            biased = " with biases" if expert_bias else ""
            case = f"with {expert} experts{biased} and routing.group_images={group_images}"
            output, dense_BTD = layer(x_BTD), dense(x_BTD).out_BTD
            assignment, routed_BTD = output.assignment, output.out_BTD
            if row.gating == "softmax":
                dense_BTD = dense_BTD * layer.gates.scale
            elif row.gating is not None:  # the gate of a single expert depends on its logit
                gate_M = layer.gates.plain(assignment.weight_M, assignment.token_M, NUM_IMAGES * NUM_TOKENS)
                gate_N = torch.zeros(NUM_IMAGES * NUM_TOKENS).index_add(0, assignment.token_M, gate_M)
                dense_BTD = dense_BTD * gate_N.view(NUM_IMAGES, NUM_TOKENS, 1)
            require_close(routed_BTD, dense_BTD, f"the output differs from the dense layer's {case}")
            inputs = [x_BTD, layer.experts.w_in_EFD]
            grad_x, grad_w_in_EFD = torch.autograd.grad(routed_BTD, inputs, direction_BTD, retain_graph=True)
            grad_dense_x, grad_dense_w_in = torch.autograd.grad(dense_BTD, [x_BTD, dense.w_in.weight], direction_BTD)
            require_close(grad_x, grad_dense_x, f"the gradient of the input differs {case}")
            require_close(grad_w_in_EFD[0], grad_dense_w_in, f"the gradient of the expert differs {case}")


def no_expert_gets_more_tokens_than_it_has_slots(name: str) -> None:
    """Requires C = S f_c / E in every group where experts have slots, also when all tokens prefer the same experts.

    In no rule is a token twice in an expert.
    """
    for factor in (1.0, 2.0):
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=factor, group_images=1)
        for preference in ("equal", "random"):
            prefer(layer, preference)
            assignment = assignment_of(layer, small_tokens())
            slots = expert_capacity(NUM_TOKENS, factor, NUM_EXPERTS, layer.router.rounds_capacity_up)
            case = f"with routing.capacity_factor={factor:g} and {preference} preferences"
            most, filled = int(assignment.tokens_per_expert_E.max()), filled_slots(assignment)
            fits = most <= NUM_IMAGES * slots or not has_slots(name)
            require(fits, f"an expert gets {most} tokens in {NUM_IMAGES * slots} slots {case}")
            pairs = torch.stack([assignment.expert_M[filled], assignment.token_M[filled]])
            require(torch.unique(pairs, dim=1).shape == pairs.shape, f"an expert has a token twice {case}")
            require(bool((assignment.weight_M[~filled] == 0).all()), f"an empty slot has a weight other than 0 {case}")


def every_rule_keeps_the_pairs_that_it_plans(name: str) -> None:
    """Requires the number of pairs of token and expert of one routed layer in training, over N tokens of G groups.

    Tokens that choose without a limit: k of every token. Experts that choose: E C G. A race: N f_c. Thresholds, in
    their first step: the N f_c / E best of every expert. With slots that may stay empty it is a limit. Where the
    capacity follows the noise, the mean over noise levels is N f_c, which a test of that router holds.
    """
    row, num_tokens = ROUTERS[name], NUM_IMAGES * NUM_TOKENS
    if not row.needs_capacity:
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=None)
        counts_N = assignment_of(layer, small_tokens()).experts_per_token_N
        require(bool(counts_N.eq(row.top_k or 0).all()), f"without a limit not every token has {row.top_k} experts")
    for factor in (1.0, 2.0):
        for group_images in (1, "batch"):
            layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=factor, group_images=group_images)
            assignment = assignment_of(layer, small_tokens())
            counts_E, planned = assignment.tokens_per_expert_E, round(num_tokens * factor)
            case = f"with routing.capacity_factor={factor:g} and routing.group_images={group_images}"
            found = int(counts_E.sum())
            is_exact = row.rule in ("experts", "pairs") and assignment.filled_M is None
            if not layer.router.has_unconditional and row.defaults.get("capacity_schedule", "none") == "none":
                holds = found == planned if is_exact else found <= planned
                require(holds, f"{found} pairs of token and expert are kept and {planned} are planned {case}")
            if row.rule == "thresholds":
                require(counts_E.tolist() == [planned // NUM_EXPERTS] * NUM_EXPERTS, f"loads are not even {case}")


def gradients_reach_every_parameter(name: str) -> None:
    """Requires that the router and each expert learn: all gradients are finite, and none is zero.

    A capacity predictor learns in training alone. One image has no caption, so that an expert for those learns too.
    Of a router that is never trained, this is asked for the experts alone that process any token.
    """
    for training in (True, False):
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0, expert_bias=True).train(training)
        x_BTD = small_tokens()
        learns_E = assignment_of(layer, x_BTD).tokens_per_expert_E.gt(0) | ROUTERS[name].trained
        for parameter, gradient in gradients(layer, x_BTD, num_dropped=1).items():
            require(bool(gradient.isfinite().all()), f"the gradient of {parameter} is not finite")
            is_stack = parameter.startswith("experts")
            stack = gradient.flatten(1)[learns_E] if is_stack else gradient.flatten().unsqueeze(0)
            learns = training or not parameter.startswith("router.predictor")
            is_right = bool(stack.abs().sum(dim=1).gt(0).all()) == learns
            require(is_right, f"{'no' if learns else 'a'} gradient reaches {parameter} in {_mode(training)}")


def fast_and_reference_implementation_agree(name: str) -> None:
    """Requires that `train.implementation` changes outputs and gradients in the last digits of float32 at most."""
    for training in (True, False):
        layer, x_BTD = small_layer(name=name, num_experts=NUM_EXPERTS), small_tokens()
        settle(layer)
        layer.train(training)
        found: dict[bool, dict[str, Tensor]] = {}
        for fast in (True, False):
            layer.fast = fast
            found[fast] = {"out": layer(x_BTD).out_BTD.detach(), **gradients(layer, x_BTD, num_dropped=1)}
        for key, expected in found[False].items():
            error = float((found[True][key] - expected).abs().max())
            require(error <= 1e-5 * float(expected.abs().max()), f"{key} differs by {error:.3g} in {_mode(training)}")


PROPERTIES: dict[str, Callable[[str], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        answers_have_the_shapes_of_the_contract,
        one_expert_with_full_capacity_is_the_dense_layer,
        no_expert_gets_more_tokens_than_it_has_slots,
        every_rule_keeps_the_pairs_that_it_plans,
        gradients_reach_every_parameter,
        in_groups_of_one_no_image_changes_another,
        in_inference_an_image_alone_is_as_in_a_batch,
        images_change_places_with_their_results,
        images_without_a_caption_leave_the_routed_experts_alone,
        the_same_input_gives_the_same_bits,
        recomputation_gives_the_same_gradients,
        a_forward_pass_changes_no_state,
        a_loaded_layer_continues_with_the_same_bits,
        fast_and_reference_implementation_agree,
        decisions_are_made_in_float32,
    )
}


def broken(name: str, check: Callable[[str], None]) -> str | None:
    """Returns what of a property does not hold for the router `name`, or None where all of it does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            check(name)
        except EcditError as error:
            return str(error)
    return None


def has_slots(name: str) -> bool:
    """Says whether every expert has a number of slots of its own in a routing group, where there is a capacity."""
    row = ROUTERS[name]
    return row.rule in ("tokens", "experts", "fixed") and "capacity_schedule" not in row.settings


def _cases(name: str) -> Iterator[tuple[dict[str, Any], bool, int]]:
    """Yields settings, whether to train, and the number of images; in evaluation the last group is smaller."""
    factors = (1.0,) if ROUTERS[name].needs_capacity else (1.0, None)
    for factor in factors:
        for group_images in GROUPS:
            settings = {"name": name, "num_experts": NUM_EXPERTS, "capacity_factor": factor}
            yield settings | {"group_images": group_images}, True, NUM_IMAGES
            yield settings | {"group_images": group_images}, False, NUM_IMAGES + 1


def _dense_copy(layer: RoutedFeedForward) -> DenseFeedForward:
    """Returns the dense layer with the weights of the first expert of `layer`, and its biases if it has them."""
    experts = layer.experts
    has_biases = experts.b_in_EF is not None
    dense = DenseFeedForward(WIDTH, experts.w_out_EFD.shape[1], experts.activation, has_biases)
    dense.w_in.weight.data, dense.w_out.weight.data = experts.w_in_EFD[0], experts.w_out_EFD[0].T
    if experts.b_in_EF is not None and experts.b_out_ED is not None:
        dense.w_in.bias.data, dense.w_out.bias.data = experts.b_in_EF[0], experts.b_out_ED[0]
    return dense


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if key not in ("name", "num_experts"))
