"""The contract of a transformer block: what every block is given, what it returns, and the feed-forward that it has.

A block has a row in `experiments.config.blocks` and a file in this folder with a subclass of `Block`. Whatever the
block is, it has one place for a feed-forward, dense or routed, so that every router works in every block.

Legend: B images, T tokens, D width, L caption length.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from experiments.config.blocks import block_of
from experiments.config.schema import RunConfig
from experiments.layers.attention import Attention
from experiments.layers.block_mixture import BlockMixture
from experiments.layers.expert_parallel import ExpertShare
from experiments.layers.feed_forward import DenseFeedForward, RoutedFeedForward
from experiments.layers.rotary import Rotation
from experiments.routing.contract import FeedForwardOutput, RoutingContext


class Conditioning(NamedTuple):
    """Holds what all blocks of the model are conditioned on.

    vector_BD: the embedded time plus the embedded class or pooled caption. modulation_B6D: the modulation that all
    blocks share, None where each has its own. mask_B11L: where text tokens are real, None without a caption. rotation:
    by how much image tokens turn in self-attention, None without rotary positions.
    """

    vector_BD: Tensor
    modulation_B6D: Tensor | None
    mask_B11L: Tensor | None
    rotation: Rotation | None = None


class BlockOutput(NamedTuple):
    """Holds what a block returns.

    image_BTD, text_BLD: the tokens of both streams; blocks without a text stream return the text as it came, and it is
    None without a caption. answer: the output of the feed-forward of image tokens, with the losses of both streams.
    """

    image_BTD: Tensor
    text_BLD: Tensor | None
    answer: FeedForwardOutput


class Block(nn.Module, ABC):
    """One transformer block. A subclass builds `attention`, `ffn` and `switch`, and computes the block."""

    attention: Attention
    ffn: DenseFeedForward | RoutedFeedForward
    switch: BlockMixture | None
    """The experts that change the block's input (Switch-DiT), None with any other router."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.fast = config.train.is_fast

    @abstractmethod
    def on_input(
        self, x_BTD: Tensor, text_BLD: Tensor | None, conditioning: Conditioning, context: RoutingContext
    ) -> BlockOutput:
        """Computes the block on its input as it is; the feed-forward reads `context` with the block's own residual."""

    def forward(
        self, x_BTD: Tensor, text_BLD: Tensor | None, conditioning: Conditioning, context: RoutingContext
    ) -> BlockOutput:
        """Maps image tokens [B, T, D] and text tokens [B, L, D] to the same shapes, with the feed-forward's output.

        `context` is that of the batch, in which the block replaces the residual by its own. With Switch-DiT experts
        change the input of the block (`layers/block_mixture.py`), and its answer is their decision.
        """
        if self.switch is None:
            return self.on_input(x_BTD, text_BLD, conditioning, context)
        change_BTD, assignment = self.switch(x_BTD, context)
        out_BTD, text_BLD, answer = self.on_input(x_BTD + change_BTD, text_BLD, conditioning, context)
        loss = answer.auxiliary_loss if assignment.auxiliary_loss is None else assignment.auxiliary_loss
        changed = answer._replace(auxiliary_loss=loss, assignment=assignment)
        return BlockOutput(out_BTD - change_BTD, text_BLD, changed)


def build_block(config: RunConfig, layer: int, share: ExpertShare) -> Block:
    """Builds block `layer` (from 0) of the kind that `model.block` names; `share` says which experts it holds."""
    block: Block = pkgutil.resolve_name(block_of(config).implementation)(config, layer, share)
    return block
