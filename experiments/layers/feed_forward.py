"""The feed-forward layer of a block: dense, or a router with its experts. Both return a `FeedForwardOutput`.

Legend: B images, T tokens, D width, F hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from experiments.config.block_sizes import hidden_width
from experiments.config.blocks import DenseActivation, block_of
from experiments.config.router_sizes import layer_factors, mixes_blocks
from experiments.config.schema import RunConfig
from experiments.layers.expert_parallel import ALL_EXPERTS, ExpertShare
from experiments.layers.experts import StackedExperts, apply_experts, init_feed_forward
from experiments.layers.gates import AS_DECIDED, Gates
from experiments.layers.pieces import activate
from experiments.plugins.sources import plugin_errors
from experiments.routing.build import build_router
from experiments.routing.contract import Assignment, FeedForwardOutput, RoutingContext
from experiments.routing.router import Router


class DenseFeedForward(nn.Module):
    """A feed-forward of two matrices with GELU or three with SwiGLU; `bias` gives it biases from 0, like an expert."""

    def __init__(self, width: int, hidden: int, activation: DenseActivation = "gelu", bias: bool = False) -> None:
        super().__init__()
        self.activation: DenseActivation = activation
        self.w_in = nn.Linear(width, hidden * (2 if activation == "swiglu" else 1), bias=False)
        self.w_out = nn.Linear(hidden, width, bias=False)
        init_feed_forward(width, hidden, self.w_in.weight, self.w_out.weight)
        if bias:  # added afterwards, so that all weights are those that the same seed draws without biases
            for linear in (self.w_in, self.w_out):
                linear.bias = nn.Parameter(torch.zeros(linear.out_features))

    def forward(self, x_BTD: Tensor, context: RoutingContext | None = None) -> FeedForwardOutput:
        """Maps [B, T, D] to [B, T, D], without reading `context`; the auxiliary loss is 0."""
        out_BTD = self.w_out(activate(self.w_in(x_BTD), self.activation))
        return FeedForwardOutput(out_BTD, _no_loss(x_BTD))


class RoutedFeedForward(nn.Module):
    """A routed feed-forward: a router, its stacked experts, and shared and unconditional experts where asked for."""

    def __init__(
        self,
        router: Router,
        experts: StackedExperts,
        shared: DenseFeedForward | None = None,
        fast: bool = True,
        gates: Gates = AS_DECIDED,
        unconditional: DenseFeedForward | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.unconditional = unconditional
        self.fast = fast
        self.gates = gates

    def forward(self, x_BTD: Tensor, context: RoutingContext | None = None) -> FeedForwardOutput:
        """Maps [B, T, D] to [B, T, D]; a token that no expert processes gets 0 from the routed experts.

        `context` is what the router may read beside the tokens; without one it is that of a layer alone.
        """
        context = context or RoutingContext.of_a_layer_alone(x_BTD)
        with plugin_errors("router", self.router.plugin or ""):
            assignment: Assignment = self.router(x_BTD, context)
        x_ND = x_BTD.flatten(0, 1)
        out_BTD = apply_experts(self.experts, x_ND, assignment, self.fast, self.gates).view_as(x_BTD)
        if self.shared is not None:
            out_BTD = out_BTD + self.shared(x_BTD).out_BTD
        if self.unconditional is not None:
            images = _images_where(context.dropped_B)
            alone_BTD = self.unconditional(x_BTD[images]).out_BTD.to(out_BTD.dtype)
            out_BTD = out_BTD.index_add(0, images, alone_BTD)
        if assignment.mixture is not None:
            assignment = assignment._replace(mixture=assignment.mixture.applied())
        return FeedForwardOutput(out_BTD, loss_of(assignment, x_BTD), assignment)


def _images_where(chosen_B: Tensor) -> Tensor:
    """Returns the numbers of the images that are chosen; for a fake tensor, which has no values, those of the first."""
    if isinstance(chosen_B, FakeTensor):
        return torch.zeros(1, dtype=torch.int64, device=chosen_B.device)
    return chosen_B.nonzero().squeeze(1)


def loss_of(assignment: Assignment, x_BTD: Tensor) -> Tensor:
    """Returns the auxiliary loss of a routed layer of input `x_BTD`, float32 scalar; 0 where the decision has none."""
    return _no_loss(x_BTD) if assignment.auxiliary_loss is None else assignment.auxiliary_loss


def _no_loss(x_BTD: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=x_BTD.device)


def build_feed_forward(
    config: RunConfig, layer: int, share: ExpertShare = ALL_EXPERTS, is_text: bool = False
) -> DenseFeedForward | RoutedFeedForward:
    """Builds the feed-forward of block `layer` (from 0): routed in `config.sparse_layer_indices`, dense in the others.

    With Switch-DiT all are dense, and `block_mixture.py` has the experts.

    `share` says which experts this process holds. Those of text tokens are drawn with a seed of their own.
    """
    width, routing = config.model.width, config.routing
    if layer not in config.sparse_layer_indices or mixes_blocks(config):
        row = block_of(config)
        return DenseFeedForward(width, hidden_width(config, config.model.ffn_factor), row.activation, row.has_biases)
    assert routing.expert is not None
    assert routing.expert_factor is not None
    router = build_router(config)
    router.in_layer(layer, layer_factors(config)[config.sparse_layer_indices.index(layer)], is_text)
    hidden = hidden_width(config, routing.expert_factor)
    seed, bias = f"{config.seed} {'text ' if is_text else ''}{layer}", routing.expert_bias
    fused = config.train.implementation == "fused"
    experts = StackedExperts(routing.num_experts, width, hidden, routing.expert, share, seed, bias, fused)
    shared = None
    if routing.shared_factor:
        shared = DenseFeedForward(width, hidden_width(config, routing.shared_factor), routing.expert, bias)
    unconditional = DenseFeedForward(width, hidden, routing.expert, bias) if routing.unconditional_expert else None
    fast = config.train.is_fast
    return RoutedFeedForward(router, experts, shared, fast, Gates.of(config), unconditional)
