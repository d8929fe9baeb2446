"""The layers that a routed layer is measured against: other usual implementations, and lower limits.

All use the experts and the router of our layer, except DeepSpeed's layer, which is unmodified (top-2, its defaults),
and the dense one, which has the same FLOPs. They are used by benchmarks only.

Legend: B images, T tokens, N = B T, D width, E experts, G groups (images), S = T, C slots of an expert in a group, P
slots of an expert.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.block_sizes import hidden_width
from experiments.config.schema import RunConfig
from experiments.distributed.deepspeed_library import deepspeed
from experiments.layers.expert_parallel import ALL_EXPERTS, ExpertShare
from experiments.layers.experts import StackedExperts
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward, loss_of
from experiments.layers.pieces import activate
from experiments.models.blocks.block import Block
from experiments.models.dit import DiT
from experiments.routing.contract import FeedForwardOutput, RoutingContext


def dense_of_the_same_flops(config: RunConfig) -> DenseFeedForward:
    """Returns a dense layer as wide as the experts that a token passes on average, without the router's FLOPs."""
    routing = config.routing
    assert routing.capacity_factor is not None
    assert routing.expert_factor is not None
    assert routing.expert is not None
    hidden = hidden_width(config, routing.capacity_factor * routing.expert_factor)
    return DenseFeedForward(config.model.width, hidden, routing.expert)


def weights_for_autograd(experts: StackedExperts) -> tuple[nn.Parameter, nn.Parameter]:
    """Returns copies of the weights as [E, D, F] and [E, F, D].

    In these layouts autograd computes the gradients of the weights without another copy.
    """
    return nn.Parameter(experts.w_in_EFD.detach().mT.contiguous()), nn.Parameter(experts.w_out_EFD.detach().clone())


class MatmulsAlone(nn.Module):
    """The two batched matmuls over slots that are already filled, without router, gather, activation or sum."""

    def __init__(self, experts: StackedExperts) -> None:
        super().__init__()
        self.w_in_EDF, self.w_out_EFD = weights_for_autograd(experts)

    def forward(self, x_EPD: Tensor) -> Tensor:
        """Maps [E, P, D] to the same shape."""
        return torch.bmm(torch.bmm(x_EPD, self.w_in_EDF), self.w_out_EFD)


class OneHotDispatch(nn.Module):
    """Dispatch in the form of GShard: a matmul with a one-hot tensor into the slots, and a weighted one back."""

    def __init__(self, layer: RoutedFeedForward) -> None:
        super().__init__()
        self.router, self.activation = layer.router, layer.experts.activation
        self.w_in_EDF, self.w_out_EFD = weights_for_autograd(layer.experts)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps [B, T, D] to the same shape, routed by image."""
        assignment, (num_images, num_tokens, width) = self.router(x_BTD), x_BTD.shape
        num_experts = assignment.logits_NE.shape[1]
        token_EGC = assignment.token_M.view(num_experts, num_images, -1) % num_tokens
        dispatch_EGCS = F.one_hot(token_EGC, num_tokens).to(x_BTD.dtype)
        x_EGCD = torch.einsum("egcs,gsd->egcd", dispatch_EGCS, x_BTD)
        acted_EPF = activate(torch.bmm(x_EGCD.reshape(num_experts, -1, width), self.w_in_EDF), self.activation)
        y_EGCD = torch.bmm(acted_EPF, self.w_out_EFD).view_as(x_EGCD)
        weight_EGC1 = assignment.weight_M.view(num_experts, num_images, -1, 1).to(x_BTD.dtype)
        return torch.einsum("egcs,egcd->gsd", dispatch_EGCS * weight_EGC1, y_EGCD)


class ExpertLoop(nn.Module):
    """A Python loop over the experts, each with weights of its own."""

    def __init__(self, layer: RoutedFeedForward) -> None:
        super().__init__()
        self.router, self.activation = layer.router, layer.experts.activation
        self.w_in_FD = nn.ParameterList(weight.clone() for weight in layer.experts.w_in_EFD.detach())
        self.w_out_DF = nn.ParameterList(weight.T.contiguous() for weight in layer.experts.w_out_EFD.detach())

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps [B, T, D] to the same shape."""
        assignment, x_ND = self.router(x_BTD), x_BTD.flatten(0, 1)
        out_ND = torch.zeros_like(x_ND)
        num_experts = assignment.logits_NE.shape[1]
        by_expert = zip(assignment.token_M.chunk(num_experts), assignment.weight_M.chunk(num_experts), strict=True)
        for number, (token_P, weight_P) in enumerate(by_expert):
            hidden_PF = activate(F.linear(x_ND[token_P], self.w_in_FD[number]), self.activation)
            y_PD = F.linear(hidden_PF, self.w_out_DF[number]) * weight_P.unsqueeze(1).to(x_ND.dtype)
            out_ND = out_ND.index_add(0, token_P, y_PD)
        return out_ND.view_as(x_BTD)


class DroplessLoop(ExpertLoop):
    """The form of DiT-MoE's public layer: a loop over the experts, of which each takes the tokens that chose it.

    Autograd saves every intermediate of every expert. The layer holds copies of our weights, and takes our router's
    decision and the shared experts as they are.
    """

    def __init__(self, layer: RoutedFeedForward) -> None:
        super().__init__(layer)
        self.shared = layer.shared

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, context: RoutingContext | None = None
    ) -> FeedForwardOutput:
        """Maps [B, T, D] to the same shape; an expert takes the m tokens that chose it."""
        assignment, x_ND = self.router(x_BTD, context), x_BTD.flatten(0, 1)
        assert assignment.slots_E is not None, "this form has no limit on the tokens of an expert"
        sizes = assignment.slots_E.tolist()
        by_expert = zip(assignment.token_M.split(sizes), assignment.weight_M.split(sizes), strict=True)
        out_ND = torch.zeros_like(x_ND)
        for number, (token_m, weight_m) in enumerate(by_expert):
            hidden_mF = activate(F.linear(x_ND[token_m], self.w_in_FD[number]), self.activation)
            y_mD = F.linear(hidden_mF, self.w_out_DF[number]) * weight_m.unsqueeze(1).to(x_ND.dtype)
            out_ND.index_add_(0, token_m, y_mD)
        out_BTD = out_ND.view_as(x_BTD)
        if self.shared is not None:
            out_BTD = out_BTD + self.shared(x_BTD).out_BTD
        return FeedForwardOutput(out_BTD, loss_of(assignment, x_BTD), assignment)


class LoopedDiT(DiT):
    """The model with `DroplessLoop` in the place of every routed layer, with the same first weights."""

    def __init__(self, config: RunConfig, share: ExpertShare = ALL_EXPERTS, checkpointed: bool = False) -> None:
        super().__init__(config, share, checkpointed)
        for block in self.blocks:
            assert isinstance(block, Block)
            if isinstance(block.ffn, RoutedFeedForward):
                block.ffn = DroplessLoop(block.ffn)  # type: ignore[assignment]


class DeepSpeedLayer(nn.Module):
    """DeepSpeed's `deepspeed.moe.layer.MoE` with top-2 gating and the same experts. It needs a process group."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        width, routing = config.model.width, config.routing
        hidden = hidden_width(config, routing.expert_factor or 0)
        expert = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))
        # It counts capacity per choice: with two choices a token, 1 gives as many slots as f_c = 2.
        per_choice = (routing.capacity_factor or 2.0) / 2
        self.layer: Any = deepspeed.moe.layer.MoE(
            width, expert, routing.num_experts, k=2, capacity_factor=per_choice
        )  # fmt: skip
        self.layer.set_deepspeed_parallelism()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps [B, T, D] to the same shape."""
        out_BTD: Tensor = self.layer(x_BTD)[0]
        return out_BTD
