"""The feed-forward layer of a block: dense, or a router with its experts. Both return a `FeedForwardOutput`.

Legend: B images, T tokens, D width, F hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.config.budget import hidden_width
from experiments.config.schema import RunConfig
from experiments.layers.expert_parallel import ALL_EXPERTS, ExpertShare
from experiments.layers.experts import StackedExperts, apply_experts, init_feed_forward
from experiments.layers.gates import AS_DECIDED, Gates
from experiments.layers.pieces import Activation, activate
from experiments.plugins.sources import plugin_errors
from experiments.routing.build import build_router
from experiments.routing.contract import Assignment, FeedForwardOutput
from experiments.routing.router import Router


class DenseFeedForward(nn.Module):
    """A feed-forward of two matrices with GELU or three with SwiGLU; `bias` gives it biases from 0, like an expert."""

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu", bias: bool = False) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.w_in = nn.Linear(width, hidden * (2 if activation == "swiglu" else 1), bias=False)
        self.w_out = nn.Linear(hidden, width, bias=False)
        init_feed_forward(width, hidden, self.w_in.weight, self.w_out.weight)
        if bias:  # added afterwards, so that all weights are those that the same seed draws without biases
            for linear in (self.w_in, self.w_out):
                linear.bias = nn.Parameter(torch.zeros(linear.out_features))

    def forward(self, x_BTD: Tensor) -> FeedForwardOutput:
        """Maps [B, T, D] to [B, T, D]; the auxiliary loss is 0."""
        out_BTD = self.w_out(activate(self.w_in(x_BTD), self.activation))
        return FeedForwardOutput(out_BTD, _no_loss(x_BTD))


class RoutedFeedForward(nn.Module):
    """A routed feed-forward: a router, its stacked experts, and DiT-MoE's shared experts where the config has them."""

    def __init__(
        self,
        router: Router,
        experts: StackedExperts,
        shared: DenseFeedForward | None = None,
        fast: bool = True,
        gates: Gates = AS_DECIDED,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.fast = fast
        self.gates = gates

    def forward(self, x_BTD: Tensor) -> FeedForwardOutput:
        """Maps [B, T, D] to [B, T, D]; a token that no expert processes gets 0 from the routed experts."""
        with plugin_errors("router", self.router.plugin or ""):
            assignment: Assignment = self.router(x_BTD)
        x_ND = x_BTD.flatten(0, 1)
        out_BTD = apply_experts(self.experts, x_ND, assignment, self.fast, self.gates).view_as(x_BTD)
        if self.shared is not None:
            out_BTD = out_BTD + self.shared(x_BTD).out_BTD
        loss = _no_loss(x_BTD) if assignment.auxiliary_loss is None else assignment.auxiliary_loss
        return FeedForwardOutput(out_BTD, loss, assignment)


def _no_loss(x_BTD: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=x_BTD.device)


def build_feed_forward(
    config: RunConfig, layer: int, share: ExpertShare = ALL_EXPERTS
) -> DenseFeedForward | RoutedFeedForward:
    """Builds the feed-forward of block `layer` (from 0): routed in `config.sparse_layer_indices`, dense in the others.

    `share` says which experts this process holds.
    """
    width, routing = config.model.width, config.routing
    if layer not in config.sparse_layer_indices:
        return DenseFeedForward(width, hidden_width(config, config.model.ffn_factor))
    assert routing.expert is not None
    assert routing.expert_factor is not None
    router = build_router(config)
    hidden = hidden_width(config, routing.expert_factor)
    seed, bias = f"{config.seed} {layer}", routing.expert_bias
    experts = StackedExperts(routing.num_experts, width, hidden, routing.expert, share, seed, bias)
    shared = None
    if routing.shared_factor:
        shared = DenseFeedForward(width, hidden_width(config, routing.shared_factor), routing.expert, bias)
    return RoutedFeedForward(router, experts, shared, config.train.implementation == "fast", Gates.of(config))
