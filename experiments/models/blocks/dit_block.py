"""DiT's block (arXiv 2212.09748, section 3.2): self-attention and a feed-forward, modulated by adaLN-zero.

The embedded time plus the embedded class enters by a network of the block's own, one SiLU and one linear map, which
starts at zero, so that the block starts as the identity. Attention and dense feed-forward have biases and the tanh form
of GELU, as in the public code of DiT. Routed feed-forwards are those of the router (DiT-MoE, arXiv 2407.11633: SwiGLU
experts without biases).

Legend: B images, T tokens, D width, L caption length.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.layers.attention import build_attention, gated_residual, modulate
from experiments.layers.block_mixture import build_block_mixture
from experiments.layers.expert_parallel import ExpertShare
from experiments.layers.feed_forward import build_feed_forward
from experiments.models.blocks.block import Block, BlockOutput, Conditioning
from experiments.routing.contract import FeedForwardOutput, RoutingContext


class DiTBlock(Block):
    """Self-attention and a feed-forward, both modulated and gated by the block's own network."""

    def __init__(self, config: RunConfig, layer: int, share: ExpertShare) -> None:
        super().__init__(config)
        width = config.model.width
        self.attention = build_attention(config)
        self.modulation = nn.Linear(width, 6 * width)
        self.ffn = build_feed_forward(config, layer, share)
        self.switch = build_block_mixture(config, layer)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def on_input(
        self, x_BTD: Tensor, text_BLD: Tensor | None, conditioning: Conditioning, context: RoutingContext
    ) -> BlockOutput:
        """Computes the block."""
        mixed_B6D = self.modulation(F.silu(conditioning.vector_BD)).unflatten(1, (6, -1))
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = mixed_B6D.unsqueeze(2).unbind(1)
        normed_BTD = modulate(x_BTD, shift_a, scale_a, self.fast)
        mixed_BTD = self.attention(normed_BTD, normed_BTD, rotation=conditioning.rotation)
        x_BTD = gated_residual(x_BTD, gate_a, mixed_BTD, self.fast)
        own = context._replace(residual_BTD=x_BTD)
        answer: FeedForwardOutput = self.ffn(modulate(x_BTD, shift_f, scale_f, self.fast), own)
        return BlockOutput(gated_residual(x_BTD, gate_f, answer.out_BTD, self.fast), text_BLD, answer)
