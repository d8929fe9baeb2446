"""Switch-DiT's mixture of a block: linear experts, chosen by noise level, change what the block reads.

`routing/switch_dit.py` has the equations. With the change c = (m - 1) x = x sum_e g_e (W_e x + b_e) the block is
Block(x + c) - c, which is the paper's Block(x m) + (1 - m) x. In 16 bits m would lose most digits of a change that is
small beside 1, and c does not. Experts start at zero, as in the public code, so that c is exactly 0 and a model starts
as the dense one.

Legend: N tokens of the batch, M slots of all experts, sorted by expert, D width, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.router_sizes import mixes_blocks
from experiments.config.schema import RunConfig
from experiments.layers.experts import apply_experts
from experiments.layers.segments import slot_counts
from experiments.routing.build import build_router
from experiments.routing.contract import Assignment, RoutingContext
from experiments.routing.switch_dit import SwitchDiTRouter


class LinearExperts(nn.Module):
    """E matrices [D, D] with biases, which start at zero. Every process holds all of them."""

    def __init__(self, num_experts: int, width: int) -> None:
        super().__init__()
        self.weight_EDD = nn.Parameter(torch.zeros(num_experts, width, width))
        self.bias_ED = nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, x_MD: Tensor, slots_E: Tensor, fast: bool = True) -> Tensor:
        """Applies the first expert to the first `slots_E[0]` slots, and so on: [M, D] to [M, D]."""
        parts = torch.split(x_MD, slot_counts(slots_E, len(x_MD)))
        return torch.cat([F.linear(*each) for each in zip(parts, self.weight_EDD, self.bias_ED, strict=True)])


class BlockMixture(nn.Module):
    """The router and the linear experts of one block."""

    def __init__(self, config: RunConfig, layer: int) -> None:
        super().__init__()
        router = build_router(config)
        assert isinstance(router, SwitchDiTRouter), "only Switch-DiT's router changes blocks"
        router.in_layer(layer, 1.0)
        self.router = router
        self.experts = LinearExperts(config.routing.num_experts, config.model.width)
        self.fast = config.train.is_fast

    def forward(self, x_BTD: Tensor, context: RoutingContext) -> tuple[Tensor, Assignment]:
        """Returns the change c of the block's input, [B, T, D], and which experts made it."""
        assignment: Assignment = self.router(x_BTD, context)
        mixed_ND = apply_experts(self.experts, x_BTD.flatten(0, 1), assignment, self.fast)
        return x_BTD * mixed_ND.view_as(x_BTD), assignment


def build_block_mixture(config: RunConfig, layer: int) -> BlockMixture | None:
    """Builds the mixture of block `layer` (from 0); None where the block has none."""
    return BlockMixture(config, layer) if mixes_blocks(config) and layer in config.sparse_layer_indices else None
