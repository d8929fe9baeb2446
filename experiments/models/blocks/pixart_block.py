"""PixArt-alpha's block (arXiv 2310.00426, section 2.3): self-attention, cross-attention to the caption, feed-forward.

The timestep enters by adaLN-single: one modulation for all blocks, plus a learned table of each block. The router reads
what the experts read, LN(x + cross-attention) after modulation, so it sees image, text and timestep (equation 4 of
EC-DIT does not say whether it is modulated; that is our choice). Modulation and the outputs of cross-attention start at
zero, so that the block starts as the identity on tokens.

Legend: B images, T tokens, D width, L caption length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.layers.attention import build_attention, gated_residual, modulate
from experiments.layers.block_mixture import build_block_mixture
from experiments.layers.expert_parallel import ExpertShare
from experiments.layers.feed_forward import build_feed_forward
from experiments.models.blocks.block import Block, BlockOutput, Conditioning
from experiments.routing.contract import FeedForwardOutput, RoutingContext


class PixArtBlock(Block):
    """Self-attention, cross-attention to the caption and a feed-forward, modulated by the shared network."""

    def __init__(self, config: RunConfig, layer: int, share: ExpertShare) -> None:
        super().__init__(config)
        self.attention = build_attention(config)
        self.cross_attention = build_attention(config, zero_output=True)
        self.ffn = build_feed_forward(config, layer, share)
        self.switch = build_block_mixture(config, layer)
        self.modulation_6D = nn.Parameter(torch.zeros(6, config.model.width))

    def on_input(
        self, x_BTD: Tensor, text_BLD: Tensor | None, conditioning: Conditioning, context: RoutingContext
    ) -> BlockOutput:
        """Computes the block. As in PixArt-alpha, cross-attention is neither modulated nor gated."""
        assert conditioning.modulation_B6D is not None
        assert text_BLD is not None
        mixed_B6D = conditioning.modulation_B6D + self.modulation_6D
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = mixed_B6D.unsqueeze(2).unbind(1)
        normed_BTD = modulate(x_BTD, shift_a, scale_a, self.fast)
        mixed_BTD = self.attention(normed_BTD, normed_BTD, rotation=conditioning.rotation)
        x_BTD = gated_residual(x_BTD, gate_a, mixed_BTD, self.fast)
        x_BTD = x_BTD + self.cross_attention(x_BTD, text_BLD, conditioning.mask_B11L)
        own = context._replace(residual_BTD=x_BTD)
        answer: FeedForwardOutput = self.ffn(modulate(x_BTD, shift_f, scale_f, self.fast), own)
        return BlockOutput(gated_residual(x_BTD, gate_f, answer.out_BTD, self.fast), text_BLD, answer)
