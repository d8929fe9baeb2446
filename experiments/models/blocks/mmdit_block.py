"""MM-DiT's block (SD3, arXiv 2403.03206, section 4 and figure 2): image and text tokens in two streams.

Each stream has its own modulation (adaLN-zero, from the embedded time plus pooled caption), maps of attention and
feed-forward; attention is joint. In the last block nothing reads the text stream any more, so that text tokens are only
modulated by shift and scale and attended to: there they have no output map and no feed-forward. As in the public code
of SD3 their queries are computed there too, although nobody reads the result, so that these weights get no gradient.

Text tokens have a dense feed-forward, or with `routing.text_experts` experts of their own in the blocks that have
experts, after the same rule as those of image tokens (MoMa, arXiv 2407.21770, section 2.2, has experts by modality).

Legend: B images, T image tokens, D width, L caption length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.config.text_stream import has_text_output, with_text_experts
from experiments.layers.attention import build_attention, gated_residual, modulate
from experiments.layers.block_mixture import build_block_mixture
from experiments.layers.expert_parallel import ExpertShare
from experiments.layers.feed_forward import build_feed_forward
from experiments.layers.joint_attention import joint_attention
from experiments.models.blocks.block import Block, BlockOutput, Conditioning
from experiments.routing.contract import FeedForwardOutput, RoutingContext


class MMDiTBlock(Block):
    """Joint attention of image and text tokens and a feed-forward for each, modulated by networks of their own."""

    def __init__(self, config: RunConfig, layer: int, share: ExpertShare) -> None:
        super().__init__(config)
        width, goes_on = config.model.width, has_text_output(config, layer)
        self.attention = build_attention(config)
        self.text_attention = build_attention(config)
        self.modulation = nn.Linear(width, 6 * width)
        self.text_modulation = nn.Linear(width, (6 if goes_on else 2) * width)
        self.ffn = build_feed_forward(config, layer, share)
        self.switch = build_block_mixture(config, layer)
        self.text_ffn = build_feed_forward(with_text_experts(config), layer, share, is_text=True) if goes_on else None
        if not goes_on:
            self.text_attention.register_module("out", None)
        for linear in (self.modulation, self.text_modulation):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def on_input(
        self, x_BTD: Tensor, text_BLD: Tensor | None, conditioning: Conditioning, context: RoutingContext
    ) -> BlockOutput:
        """Computes the block; the last one returns the text as it came."""
        assert text_BLD is not None
        assert conditioning.mask_B11L is not None
        vector_BD = F.silu(conditioning.vector_BD)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = _parts(self.modulation, vector_BD)
        text_shift, text_scale, *text_rest = _parts(self.text_modulation, vector_BD)
        image_BTD, read_BLD = joint_attention(
            self.attention,
            self.text_attention,
            modulate(x_BTD, shift_a, scale_a, self.fast),
            modulate(text_BLD, text_shift, text_scale, self.fast),
            conditioning.mask_B11L,
            conditioning.rotation,
        )
        x_BTD = gated_residual(x_BTD, gate_a, self.attention.out(image_BTD), self.fast)
        own = context._replace(residual_BTD=x_BTD)
        answer: FeedForwardOutput = self.ffn(modulate(x_BTD, shift_f, scale_f, self.fast), own)
        x_BTD = gated_residual(x_BTD, gate_f, answer.out_BTD, self.fast)
        if self.text_ffn is None:
            return BlockOutput(x_BTD, text_BLD, answer)
        text_gate, shift_f, scale_f, gate_f = text_rest
        text_BLD = gated_residual(text_BLD, text_gate, self.text_attention.out(read_BLD), self.fast)
        own = _context_of_text(context, text_BLD, conditioning.mask_B11L)
        text: FeedForwardOutput = self.text_ffn(modulate(text_BLD, shift_f, scale_f, self.fast), own)
        text_BLD = gated_residual(text_BLD, gate_f, text.out_BTD, self.fast)
        both = answer._replace(
            auxiliary_loss=answer.auxiliary_loss + text.auxiliary_loss, text_assignment=text.assignment
        )
        return BlockOutput(x_BTD, text_BLD, both)


def _parts(modulation: nn.Module, vector_BD: Tensor) -> tuple[Tensor, ...]:
    """Returns the parts of a modulation, [B, 1, D] each."""
    mixed: Tensor = modulation(vector_BD).unflatten(1, (-1, vector_BD.shape[1]))
    return mixed.unsqueeze(2).unbind(1)


def _context_of_text(context: RoutingContext, text_BLD: Tensor, mask_B11L: Tensor) -> RoutingContext:
    """Returns what a router may read beside text tokens: what is theirs, and what is true of the whole image."""
    position_BL = torch.arange(text_BLD.shape[1], device=text_BLD.device).expand(text_BLD.shape[:2])
    return context._replace(residual_BTD=text_BLD, position_BT=position_BL, real_BT=mask_B11L[:, 0, 0])
