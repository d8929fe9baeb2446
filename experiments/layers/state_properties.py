"""Properties of routers about what they keep: a decision is a function of input, weights and state, in float32.

`properties.py` lists them with all others.

Legend: as in `routing/contract.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from experiments.layers.feed_forward import RoutedFeedForward
from experiments.layers.small_layers import (
    NUM_EXPERTS,
    assignment_of,
    gradients,
    gradients_of_loss,
    require,
    settle,
    small_layer,
    small_tokens,
)
from experiments.routing.contract import FeedForwardOutput


def the_same_input_gives_the_same_bits(name: str) -> None:
    """Requires that outputs and gradients are functions of the input, in training and in evaluation."""
    for training in (True, False):
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0).train(training)
        x_BTD = small_tokens()
        mode = "training" if training else "evaluation"
        require(torch.equal(layer(x_BTD).out_BTD, layer(x_BTD).out_BTD), f"outputs differ in {mode}")
        first, second = gradients(layer, x_BTD), gradients(layer, x_BTD)
        for parameter in first:
            require(torch.equal(first[parameter], second[parameter]), f"gradients of {parameter} differ")


def recomputation_gives_the_same_gradients(name: str) -> None:
    """Requires that activation checkpointing, which computes the layer again, changes no bit and no state."""
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0)
    settle(layer)
    x_BTD, before = small_tokens(), _state(layer)
    expected = gradients(layer, x_BTD)
    x_BTD.requires_grad_()
    output: FeedForwardOutput = checkpoint(layer, x_BTD, use_reentrant=False)
    for parameter, gradient in gradients_of_loss(layer, x_BTD, output.out_BTD, output.auxiliary_loss).items():
        require(torch.equal(gradient, expected[parameter]), f"the gradient of {parameter} differs when recomputed")
    _require_equal_states(before, _state(layer), "when a layer is computed again")


def a_forward_pass_changes_no_state(name: str) -> None:
    """Requires that neither training nor evaluation changes what the router keeps; only the training loop may do so."""
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0)
    settle(layer)
    before = _state(layer)
    for training in (True, False):
        gradients(layer.train(training), small_tokens())
        _require_equal_states(before, _state(layer), "in training" if training else "in evaluation")


def a_loaded_layer_continues_with_the_same_bits(name: str) -> None:
    """Requires that weights and state of a checkpoint are all that a router knows: a new one decides the same."""
    layer, other = (small_layer(name=name, num_experts=NUM_EXPERTS) for _ in range(2))
    settle(layer)
    for _ in range(2):
        layer(small_tokens())  # a router that counts its calls would now decide otherwise
    kept = {parameter: tensor.detach().clone() for parameter, tensor in layer.named_parameters()}
    other.load_state_dict(kept | _state(layer), strict=False)
    x_BTD = small_tokens()
    for training in (True, False):
        found, expected = (each.train(training)(x_BTD).out_BTD for each in (other, layer))
        require(torch.equal(found, expected), "the outputs of the loaded layer differ")


def decisions_are_made_in_float32(name: str) -> None:
    """Requires that with bfloat16 weights and inputs the decision is that of float32 from the same numbers.

    The router's state keeps its float32 numbers, bit for bit, and has no gradient.
    """
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0)
    settle(layer)
    before = _state(layer)
    layer.bfloat16()
    _require_equal_states(before, _state(layer), "when the model is cast to bfloat16")
    require(not any(tensor.requires_grad for tensor in _state(layer).values()), "the router's state has a gradient")
    x_BTD = small_tokens().bfloat16()
    for training in (True, False):
        output = layer.bfloat16().train(training)(x_BTD)
        assignment, exact = output.assignment, assignment_of(layer.float(), x_BTD.float())
        require(output.out_BTD.dtype == torch.bfloat16, f"the output is {output.out_BTD.dtype}, not bfloat16")
        require(output.auxiliary_loss.dtype == torch.float32, "the auxiliary loss is not float32")
        for field in ("logits_NE", "token_M", "weight_M"):
            same = torch.equal(getattr(assignment, field), getattr(exact, field))
            require(same, f"{field} differs from float32's")


def _state(layer: RoutedFeedForward) -> dict[str, Tensor]:
    """Returns copies of the buffers of the layer by name."""
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def _require_equal_states(before: dict[str, Tensor], after: dict[str, Tensor], when: str) -> None:
    for name, expected in before.items():
        same = expected.dtype == after[name].dtype and torch.equal(expected, after[name])
        require(same, f"{name} changes {when}")
