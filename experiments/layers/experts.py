"""Stacked expert weights, and the dispatch, expert computation and combine that all routers share.

Tokens are gathered into their slots, the experts run over them, and the results are added back with the router's
weights; there is no one-hot matmul. Where all experts have equally many slots they run as two batched matmuls
(`pieces.py`). Where loads differ each expert runs over its own slots (`segments.py`), so that no padding is computed.
`dispatch.py` has the fast gather and sum. GELU experts are two matrices (EC-DIT), SwiGLU experts three (DiT-MoE), gate
and up stored side by side.

Legend: N tokens, D width, F hidden width, E experts, P slots of an expert, M slots of all experts, sorted by expert.
`w_in_EFD` and `b_in_EF` hold 2 F rows with SwiGLU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from experiments.layers.dispatch import Places, combine, gather
from experiments.layers.expert_parallel import ALL_EXPERTS, ExpertExchange, ExpertShare
from experiments.layers.gates import AS_DECIDED, Gates
from experiments.layers.pieces import NO_BIASES, Activation, Biases, activate, feed_forward_in_pieces, products
from experiments.layers.segments import feed_forward_in_segments, plain_segments
from experiments.layers.soft_slots import apply_to_slots
from experiments.routing.contract import Assignment


class StackedExperts(nn.Module):
    """E feed-forward networks with stacked weights (8 D^2 each with GELU and factor 4, as in EC-DIT).

    `share` says which of them this process holds, all by default. All weights are drawn from `seed`. `bias` adds biases
    after both matrices, which start at 0 (ProMoE, arXiv 2510.24711, and the feed-forward of DiT, arXiv 2212.09748).
    `fused` computes the activation within the products where loads are equal (`product_kernels.py`).
    """

    b_in_EF: nn.Parameter | None
    b_out_ED: nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        activation: Activation,
        share: ExpertShare = ALL_EXPERTS,
        seed: str = "",
        bias: bool = False,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.fused = fused
        rows, held = hidden * (2 if activation == "swiglu" else 1), share.of(num_experts)
        self.activation: Activation = activation
        self.w_in_EFD = nn.Parameter(torch.empty(len(held), rows, width))
        self.w_out_EFD = nn.Parameter(torch.empty(len(held), hidden, width))
        self.b_in_EF = nn.Parameter(torch.zeros(len(held), rows)) if bias else None
        self.b_out_ED = nn.Parameter(torch.zeros(len(held), width)) if bias else None
        self.exchange = ExpertExchange(num_experts, share) if share.count > 1 else None
        for expert, *weights in zip(held, self.w_in_EFD.data, self.w_out_EFD.data, strict=True):
            init_feed_forward(width, hidden, *weights, generator=expert_generator(seed, expert, weights[0].device))
        if self.exchange is not None:
            # The mark makes DeepSpeed reduce these gradients only over processes that hold the same experts.
            for parameter in self.parameters():
                share.mark(parameter)

    def forward(self, x_MD: Tensor, slots_E: Tensor | None = None, fast: bool = True) -> Tensor:
        """Applies each expert to its own slots, on whichever process holds it: [M, D] to [M, D].

        `slots_E` is the number of slots of each expert; None means that all have equally many.
        """
        compute = partial(self._compute, fast)
        return compute(x_MD, slots_E) if self.exchange is None else self.exchange(x_MD, slots_E, compute)

    def _compute(self, fast: bool, x_MD: Tensor, slots_E: Tensor | None) -> Tensor:
        """Applies the experts that this process holds."""
        biases = NO_BIASES if self.b_in_EF is None or self.b_out_ED is None else (self.b_in_EF, self.b_out_ED)
        weights = (self.w_in_EFD, self.w_out_EFD, self.activation, biases)
        if slots_E is not None:
            return (feed_forward_in_segments if fast else plain_segments)(x_MD, slots_E, *weights)
        x_EPD = x_MD.view(len(self.w_in_EFD), -1, x_MD.shape[1])
        y_EPD = feed_forward_in_pieces(x_EPD, *weights, self.fused) if fast else plain_feed_forward(x_EPD, *weights)
        return y_EPD.flatten(0, 1)


def init_feed_forward(width: int, hidden: int, *weights: Tensor, generator: torch.Generator | None = None) -> None:
    """Draws the weights Xavier-uniform as in DiT, with the bound of a single matrix [width, hidden]."""
    bound = math.sqrt(6 / (width + hidden))
    for weight in weights:
        nn.init.uniform_(weight, -bound, bound, generator=generator)


def expert_generator(seed: str, expert: int, device: torch.device) -> torch.Generator | None:
    """Returns an expert's generator, seeded by its global number so that any layout draws the same; None on `meta`."""
    if device.type == "meta":
        return None
    # The hash makes experts with neighbouring numbers independent. It is cut to 63 bits, as torch's seeds are signed.
    digest = hashlib.blake2b(f"{seed} {expert}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def plain_feed_forward(
    x_EPD: Tensor, w_in_EFD: Tensor, w_out_EFD: Tensor, activation: Activation, biases: Biases = NO_BIASES
) -> Tensor:
    """Applies all experts at once, with two batched matmuls over [E, P, D]; the reference for `pieces.py`."""
    b_in_E1F, b_out_E1D = (None if bias is None else bias.unsqueeze(1) for bias in biases)
    return products(b_out_E1D, activate(products(b_in_E1F, x_EPD, w_in_EFD.mT), activation), w_out_EFD)


def apply_experts(
    experts: Callable[..., Tensor],
    x_ND: Tensor,
    assignment: Assignment,
    fast: bool = True,
    gates: Gates = AS_DECIDED,
) -> Tensor:
    """Dispatches tokens to their slots, applies the experts and combines the results: [N, D] to [N, D].

    `experts` maps slots [M, D], sorted by expert, and the numbers of them, as `StackedExperts` does. `gates` says how
    the router's weights enter the sum. A token that no expert processes gets 0. The sum runs in float32, the type of
    the weights, and is returned in the type of `x_ND`. `fast=False` is the reference in plain operations, which agrees
    up to rounding.
    """
    if assignment.mixture is not None:
        return apply_to_slots(experts, x_ND, assignment.mixture, assignment.logits_NE.shape[1], fast)
    if fast:
        places = Places.of(assignment.token_M, x_ND.shape[0])
        y_MD = experts(gather(x_ND, places), assignment.slots_E)
        return combine(y_MD, gates(assignment.weight_M, places), places).to(x_ND.dtype)
    x_MD = x_ND.index_select(0, assignment.token_M)
    weight_M = gates.plain(assignment.weight_M, assignment.token_M, x_ND.shape[0])
    y_MD = experts(x_MD, assignment.slots_E, fast=False) * weight_M.unsqueeze(-1)
    out_ND = torch.zeros_like(x_ND, dtype=y_MD.dtype)
    return out_ND.index_add_(0, assignment.token_M, y_MD).to(x_ND.dtype)
