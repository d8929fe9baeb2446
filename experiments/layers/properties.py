"""The properties that every router has, each as a function that raises `BrokenPropertyError` where it does not hold.

`ecdit check-router NAME` and the unit tests go through the same list, so that a plugin is held to what holds for the
routers of this project. The layers are small (8 wide, 4 experts) and run on a CPU; inputs are drawn from a fixed seed.

Legend: as in `routing/contract.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.budget import expert_capacity
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.errors import EcditError
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward, build_feed_forward
from experiments.routing.contract import Assignment

WIDTH, NUM_EXPERTS, NUM_IMAGES, NUM_TOKENS = 8, 4, 4, 16
GROUPS: tuple[int | str, ...] = (1, 2, "batch")


class BrokenPropertyError(EcditError):
    """A property that the router does not have."""

    exit_code = 1


def small_config(width: int = WIDTH, **routing: Any) -> RunConfig:
    """Returns a config of one routed layer with these `routing` settings."""
    model = {"name": "nano", "width": width, "num_layers": 1, "sparse_layers": "all", "ffn_factor": 2.0}
    return RunConfig.model_validate({"model": model, "routing": routing})


def small_layer(**routing: Any) -> RoutedFeedForward:
    """Returns the layer of `small_config` with decided preferences, so that a limit drops tokens.

    Biases of experts, where `routing` asks for them, are drawn too, because a forgotten bias of 0 would not show.
    """
    layer = build_feed_forward(small_config(**routing), 0)
    assert isinstance(layer, RoutedFeedForward)
    torch.nn.init.normal_(layer.router.weight_DE)
    for name, parameter in layer.named_parameters():
        if name.split(".")[-1] in ("b_in_EF", "b_out_ED", "bias"):
            torch.nn.init.normal_(parameter)
    return layer


def gradients(layer: RoutedFeedForward, x_BTD: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of a loss that reads every output and the auxiliary loss, by parameter and for `x`."""
    x_BTD = x_BTD.clone().requires_grad_()
    output = layer(x_BTD)
    direction = torch.linspace(-1, 1, output.out_BTD.numel(), device=x_BTD.device).view_as(output.out_BTD)
    loss = (output.out_BTD * direction).sum() + output.auxiliary_loss
    inputs = dict(layer.named_parameters()) | {"x": x_BTD}
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return {
        name: torch.zeros_like(inputs[name]) if gradient is None else gradient
        for name, gradient in zip(inputs, found, strict=True)
    }


def answers_have_the_shapes_of_the_contract(name: str) -> None:
    """Requires that every slot names a token of the batch, and that every field has its shape and type."""
    for settings, training, num_images in _cases(name):
        layer, x_BTD = small_layer(**settings).train(training), _tokens(num_images)
        output = layer(x_BTD)
        assignment, case = _assignment(output.assignment), f"in {_mode(training)} with {_shown(settings)}"
        num_slots = assignment.token_M.shape[0]
        forms: dict[str, tuple[Tensor | None, tuple[int, ...], torch.dtype]] = {
            "out_BTD": (output.out_BTD, tuple(x_BTD.shape), x_BTD.dtype),
            "token_M": (assignment.token_M, (num_slots,), torch.int64),
            "weight_M": (assignment.weight_M, (num_slots,), torch.float32),
            "filled_M": (assignment.filled_M, (num_slots,), torch.bool),
            "slots_E": (assignment.slots_E, (NUM_EXPERTS,), torch.int64),
            "logits_NE": (assignment.logits_NE, (num_images * NUM_TOKENS, NUM_EXPERTS), torch.float32),
            "auxiliary_loss": (output.auxiliary_loss, (), torch.float32),
        }
        for field, (value, shape, dtype) in forms.items():
            is_right = value is None or (tuple(value.shape) == shape and value.dtype == dtype)
            _require(is_right, f"{field} is not {dtype} {list(shape)} {case}")
        _require(int(assignment.tokens_per_expert_E.sum()) <= num_slots, f"more tokens than slots {case}")
        _require(bool(output.out_BTD.isfinite().all()), f"outputs are not finite {case}")


def one_expert_with_full_capacity_is_the_dense_layer(name: str) -> None:
    """Requires that a single expert with room for every token computes and learns what a dense layer does."""
    row = ROUTERS[name]
    only: dict[str, Any] = {"top_k": 1} if row.top_k is not None else {}
    only |= {"shared_factor": 0.0} if row.shared_factor is not None else {}
    for expert, expert_bias in (("gelu", False), ("swiglu", False), ("gelu", True), ("swiglu", True)):
        for group_images in GROUPS:
            only |= {"expert": expert, "expert_bias": expert_bias, "group_images": group_images}
            layer = small_layer(name=name, num_experts=1, capacity_factor=1.0, **only)
            dense = _dense_copy(layer)
            x_BTD, direction_BTD = _tokens().requires_grad_(), torch.randn(NUM_IMAGES, NUM_TOKENS, WIDTH)
            biased = " with biases" if expert_bias else ""
            case = f"with {expert} experts{biased} and routing.group_images={group_images}"
            output, dense_BTD = layer(x_BTD), dense(x_BTD).out_BTD
            assignment, routed_BTD = _assignment(output.assignment), output.out_BTD
            if row.gating != "softmax":  # the gate of a single expert depends on its logit, and is not 1
                gate_N = torch.zeros(NUM_IMAGES * NUM_TOKENS).index_add(0, assignment.token_M, assignment.weight_M)
                dense_BTD = dense_BTD * gate_N.view(NUM_IMAGES, NUM_TOKENS, 1)
            _require_close(routed_BTD, dense_BTD, f"the output differs from the dense layer's {case}")
            grad_x, grad_w_in_EFD = torch.autograd.grad(routed_BTD, [x_BTD, layer.experts.w_in_EFD], direction_BTD)
            grad_dense_x, grad_dense_w_in = torch.autograd.grad(dense_BTD, [x_BTD, dense.w_in.weight], direction_BTD)
            _require_close(grad_x, grad_dense_x, f"the gradient of the input differs {case}")
            _require_close(grad_w_in_EFD[0], grad_dense_w_in, f"the gradient of the expert differs {case}")


def no_expert_gets_more_tokens_than_it_has_slots(name: str) -> None:
    """Requires C = S f_c / E in every group, also when all tokens prefer the same experts; no token is there twice."""
    for factor in (1.0, 2.0):
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=factor, group_images=1)
        for preference in ("equal", "random"):
            if preference == "equal":
                torch.nn.init.zeros_(layer.router.weight_DE)
            else:
                torch.nn.init.normal_(layer.router.weight_DE)
            assignment = _assignment(layer(_tokens()).assignment)
            slots = expert_capacity(NUM_TOKENS, factor, NUM_EXPERTS, layer.router.rounds_capacity_up)
            case = f"with routing.capacity_factor={factor:g} and {preference} preferences"
            most = int(assignment.tokens_per_expert_E.max())
            _require(most <= NUM_IMAGES * slots, f"an expert gets {most} tokens in {NUM_IMAGES * slots} slots {case}")
            filled = torch.ones_like(assignment.token_M, dtype=torch.bool)
            filled = filled if assignment.filled_M is None else assignment.filled_M
            pairs = torch.stack([assignment.expert_M[filled], assignment.token_M[filled]])
            _require(torch.unique(pairs, dim=1).shape == pairs.shape, f"an expert has a token twice {case}")
            _require(bool((assignment.weight_M[~filled] == 0).all()), f"an empty slot has a weight other than 0 {case}")


def gradients_reach_every_parameter(name: str) -> None:
    """Requires that the router and each expert learn: all gradients are finite, and none is zero."""
    for training in (True, False):
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0, expert_bias=True).train(training)
        for parameter, gradient in gradients(layer, _tokens()).items():
            _require(bool(gradient.isfinite().all()), f"the gradient of {parameter} is not finite")
            stack = gradient.flatten(1) if parameter.startswith("experts") else gradient.flatten().unsqueeze(0)
            _require(bool(stack.abs().sum(dim=1).gt(0).all()), f"no gradient reaches {parameter} in {_mode(training)}")


def in_groups_of_one_no_image_changes_another(name: str) -> None:
    """Requires that with `routing.group_images=1` the result of an image does not depend on the others of its batch."""
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0, group_images=1)
    x_BTD = _tokens()
    replaced_BTD = torch.cat([3 * torch.randn_like(x_BTD[:1]), x_BTD[1:]])
    before_BTD, after_BTD = layer(x_BTD).out_BTD, layer(replaced_BTD).out_BTD
    _require(torch.equal(before_BTD[1:], after_BTD[1:]), "replacing the first image changes the results of others")


def the_same_input_gives_the_same_bits(name: str) -> None:
    """Requires that outputs and gradients are functions of the input, in training and in evaluation."""
    for training in (True, False):
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0).train(training)
        x_BTD = _tokens()
        _require(torch.equal(layer(x_BTD).out_BTD, layer(x_BTD).out_BTD), f"outputs differ in {_mode(training)}")
        first, second = gradients(layer, x_BTD), gradients(layer, x_BTD)
        for parameter in first:
            _require(torch.equal(first[parameter], second[parameter]), f"gradients of {parameter} differ")


def a_loaded_layer_continues_with_the_same_bits(name: str) -> None:
    """Requires that the weights of a checkpoint are all that a router knows: a new one with them decides the same."""
    layer, other = (small_layer(name=name, num_experts=NUM_EXPERTS) for _ in range(2))
    for _ in range(2):
        layer(_tokens())  # a router that counts its calls would now decide otherwise
    parameters = {parameter: tensor.detach().clone() for parameter, tensor in layer.named_parameters()}
    other.load_state_dict(parameters, strict=False)
    x_BTD = torch.randn(NUM_IMAGES, NUM_TOKENS, WIDTH)
    _require(torch.equal(layer(x_BTD).out_BTD, other(x_BTD).out_BTD), "the outputs of the loaded layer differ")


def fast_and_reference_implementation_agree(name: str) -> None:
    """Requires that `train.implementation` changes outputs and gradients in the last digits of float32 at most."""
    layer, x_BTD = small_layer(name=name, num_experts=NUM_EXPERTS), _tokens()
    found: dict[bool, dict[str, Tensor]] = {}
    for fast in (True, False):
        layer.fast = fast
        found[fast] = {"out": layer(x_BTD).out_BTD.detach(), **gradients(layer, x_BTD)}
    for key, expected in found[False].items():
        error = float((found[True][key] - expected).abs().max())
        _require(error <= 1e-5 * float(expected.abs().max()), f"{key} differs by {error:.3g}")


def decisions_are_made_in_float32(name: str) -> None:
    """Requires that with bfloat16 weights and inputs the decision is that of float32 from the same numbers."""
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0).bfloat16()
    x_BTD = _tokens().bfloat16()
    output, exact = layer(x_BTD), _assignment(layer.float()(x_BTD.float()).assignment)
    assignment = _assignment(output.assignment)
    _require(output.out_BTD.dtype == torch.bfloat16, f"the output is {output.out_BTD.dtype}, not bfloat16")
    _require(output.auxiliary_loss.dtype == torch.float32, "the auxiliary loss is not float32")
    for field in ("logits_NE", "token_M", "weight_M"):
        _require(torch.equal(getattr(assignment, field), getattr(exact, field)), f"{field} differs from float32's")


PROPERTIES: dict[str, Callable[[str], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        answers_have_the_shapes_of_the_contract,
        one_expert_with_full_capacity_is_the_dense_layer,
        no_expert_gets_more_tokens_than_it_has_slots,
        gradients_reach_every_parameter,
        in_groups_of_one_no_image_changes_another,
        the_same_input_gives_the_same_bits,
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


def _tokens(num_images: int = NUM_IMAGES) -> Tensor:
    return torch.randn(num_images, NUM_TOKENS, WIDTH)


def _assignment(found: Assignment | None) -> Assignment:
    assert found is not None, "a routed layer has an assignment"
    return found


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if key not in ("name", "num_experts"))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPropertyError(f"{otherwise}.")


def _require_close(found: Tensor, expected: Tensor, otherwise: str) -> None:
    try:
        assert_close(found, expected)
    except AssertionError as error:
        difference = float((found - expected).detach().abs().max()) if found.shape == expected.shape else float("nan")
        raise BrokenPropertyError(f"{otherwise}, by up to {difference:.3g}.") from error
