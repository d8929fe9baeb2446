"""Stacked expert weights, and the one dispatch, expert computation and combine that serve every router.

Tokens are gathered into their slots, all experts run as two batched matmuls, and the results are added back with the
router's weights: no one-hot matmul, no loop over experts. `dispatch.py` has the fast gather and sum. GELU experts are
two matrices (EC-DIT), SwiGLU experts three (DiT-MoE), gate and up stored side by side.

Legend: N tokens, D width, F hidden width, E experts, P slots of an expert. `w_in_EFD` holds 2 F rows with SwiGLU.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial

import torch
from torch import Tensor, nn

from experiments.routing.contract import Assignment
from experiments.routing.dispatch import Places, combine, gather
from experiments.routing.parallel import ALL_EXPERTS, ExpertExchange, ExpertShare
from experiments.routing.pieces import Activation, activate, feed_forward_in_pieces


class StackedExperts(nn.Module):
    """E feed-forwards with stacked weights, without biases (8 d^2 each with GELU and factor 4, as in EC-DIT).

    `share`: which of them this process holds; all by default. `seed`: of all weights. `fixed_slots`: in training every
    process has as many slots.
    """

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        activation: Activation,
        share: ExpertShare = ALL_EXPERTS,
        seed: str = "",
        fixed_slots: bool = False,
    ) -> None:
        super().__init__()
        rows, held = hidden * (2 if activation == "swiglu" else 1), share.of(num_experts)
        self.activation: Activation = activation
        self.w_in_EFD = nn.Parameter(torch.empty(len(held), rows, width))
        self.w_out_EFD = nn.Parameter(torch.empty(len(held), hidden, width))
        self.exchange = ExpertExchange(num_experts, share, fixed_slots) if share.count > 1 else None
        for expert, *weights in zip(held, self.w_in_EFD.data, self.w_out_EFD.data, strict=True):
            init_feed_forward(width, hidden, *weights, generator=_generator(seed, expert, weights[0].device))
        if self.exchange is not None:
            share.mark(self.w_in_EFD)
            share.mark(self.w_out_EFD)

    def forward(self, x_EPD: Tensor, fast: bool = True) -> Tensor:
        """Each expert over its own slots, wherever it is held: [E, P, D] to [E, P, D]."""
        compute = partial(self._compute, fast)
        return compute(x_EPD) if self.exchange is None else self.exchange(x_EPD, compute)

    def _compute(self, fast: bool, x_EPD: Tensor) -> Tensor:
        """The experts held here."""
        compute = feed_forward_in_pieces if fast else plain_feed_forward
        return compute(x_EPD, self.w_in_EFD, self.w_out_EFD, self.activation)


def init_feed_forward(width: int, hidden: int, *weights: Tensor, generator: torch.Generator | None = None) -> None:
    """Xavier-uniform for each matrix [width, hidden] by itself, as in DiT."""
    bound = math.sqrt(6 / (width + hidden))
    for weight in weights:
        nn.init.uniform_(weight, -bound, bound, generator=generator)


def _generator(seed: str, expert: int, device: torch.device) -> torch.Generator | None:
    """Of one expert by its global number, so that its weights do not depend on who holds it; None without weights."""
    if device.type == "meta":
        return None
    digest = hashlib.blake2b(f"{seed} {expert}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def plain_feed_forward(x_EPD: Tensor, w_in_EFD: Tensor, w_out_EFD: Tensor, activation: Activation) -> Tensor:
    """All experts at once: two batched matmuls over [E, P, D]."""
    return torch.bmm(activate(torch.bmm(x_EPD, w_in_EFD.mT), activation), w_out_EFD)


def apply_experts(experts: StackedExperts, x_ND: Tensor, assignment: Assignment, fast: bool = True) -> Tensor:
    """Gather, expert matmuls, weighted sum: [N, D] to [N, D]; a token that nobody processes gets 0.

    The sum runs in float32, as the weights are, and returns in the type of `x_ND`. `fast=False` is the reference: plain
    operations, the same up to rounding.
    """
    num_experts, num_slots = assignment.token_EP.shape
    if fast:
        places = Places.of(assignment.token_EP, x_ND.shape[0])
        y_SD = experts(gather(x_ND, places).view(num_experts, num_slots, -1)).flatten(0, 1)
        return combine(y_SD, assignment.weight_EP.reshape(-1), places).to(x_ND.dtype)
    token = assignment.token_EP.reshape(-1)
    x_EPD = x_ND.index_select(0, token).view(num_experts, num_slots, -1)
    y_EPD = experts(x_EPD, fast=False) * assignment.weight_EP.unsqueeze(-1)
    out_ND = torch.zeros_like(x_ND, dtype=y_EPD.dtype)
    return out_ND.index_add_(0, token, y_EPD.flatten(0, 1)).to(x_ND.dtype)
