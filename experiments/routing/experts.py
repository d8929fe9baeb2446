"""Stacked expert weights, and the one dispatch, expert computation and combine that serve every router.

Tokens are gathered into their slots, all experts run as two batched matmuls, and the results are added back with the
router's weights: no one-hot matmul, no loop over experts. GELU experts are two matrices (EC-DIT), SwiGLU experts three
(DiT-MoE), gate and up stored side by side.

Legend: N tokens, D width, F hidden width, E experts, P slots of an expert. `w_in_EDF` holds 2 F columns with SwiGLU.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.routing.contract import Assignment

Activation = Literal["gelu", "swiglu"]


class StackedExperts(nn.Module):
    """E feed-forwards with stacked weights, without biases (8 d^2 each with GELU and factor 4, as in EC-DIT)."""

    def __init__(self, num_experts: int, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        columns = hidden * (2 if activation == "swiglu" else 1)
        self.activation: Activation = activation
        self.w_in_EDF = nn.Parameter(torch.empty(num_experts, width, columns))
        self.w_out_EFD = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.reset_parameters(hidden)

    def reset_parameters(self, hidden: int) -> None:
        """Xavier-uniform for each expert's matrices by itself, as for the dense layers of DiT."""
        _, width, _ = self.w_in_EDF.shape
        bound = math.sqrt(6 / (width + hidden))
        nn.init.uniform_(self.w_in_EDF, -bound, bound)
        nn.init.uniform_(self.w_out_EFD, -bound, bound)

    def forward(self, x_EPD: Tensor) -> Tensor:
        """Each expert over its own slots: [E, P, D] to [E, P, D]."""
        hidden_EPF = activate(torch.bmm(x_EPD, self.w_in_EDF), self.activation)
        return torch.bmm(hidden_EPF, self.w_out_EFD)


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """GELU (tanh form, as in DiT), or SwiGLU over the two halves of the last axis."""
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.gelu(hidden, approximate="tanh")


def apply_experts(experts: StackedExperts, x_ND: Tensor, assignment: Assignment) -> Tensor:
    """Gather, expert matmuls, weighted sum: [N, D] to [N, D]; a token that nobody processes gets 0.

    The sum runs in float32, as the weights are, and returns in the type of `x_ND`.
    """
    num_experts, num_slots = assignment.token_EP.shape
    token = assignment.token_EP.reshape(-1)
    x_EPD = x_ND.index_select(0, token).view(num_experts, num_slots, -1)
    y_EPD = experts(x_EPD) * assignment.weight_EP.unsqueeze(-1)
    out_ND = torch.zeros_like(x_ND, dtype=y_EPD.dtype)
    return out_ND.index_add(0, token, y_EPD.view(token.shape[0], -1)).to(x_ND.dtype)
