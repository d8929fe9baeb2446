"""The diffusion transformer: PixArt-alpha's block with one feed-forward slot.

A block is self-attention, cross-attention to the caption, and a feed-forward that is dense or routed (EC-DIT, section
3, after PixArt-alpha). The timestep enters by adaLN-single: one modulation for all blocks plus a learned table of each
block. The router reads what the experts read, LN(x + cross-attention) after modulation, so it sees image, text and
timestep (equation 4 does not say whether it is modulated; that is our choice). Modulation, cross-attention outputs and
the head start at zero, so the model starts as the identity on tokens and predicts zero.

The model computes no loss: it returns the prediction and each layer's `FeedForwardOutput`.

Legend: B images, C channels, H, W height and width, T tokens, K kept tokens, P values of a patch, D width, L caption
length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from experiments.config.budget import PRIOR_GRID, head_width
from experiments.config.parametrization import initial_factor
from experiments.config.schema import RunConfig
from experiments.layers.attention import Attention, gated_residual, modulate
from experiments.layers.block_mixture import BlockMixture, build_block_mixture
from experiments.layers.expert_parallel import ALL_EXPERTS, ExpertShare
from experiments.layers.feed_forward import build_feed_forward
from experiments.models.embed import (
    Caption,
    TimeEmbedding,
    build_caption_encoder,
    patchify,
    sinusoidal_positions,
    unpatchify,
)
from experiments.routing.contract import FeedForwardOutput, RoutingContext
from experiments.routing.switch_dit import layer_priors


class DiTOutput(NamedTuple):
    """The output of the model.

    velocity_BKP: the prediction at each kept token, which is the velocity for rectified flow (`experiments/flow/`);
    with a learned variance P is twice the values of a patch. auxiliary_loss: float32 scalar, summed over the routed
    layers. feed_forward: one `FeedForwardOutput` per block, in order.
    """

    velocity_BKP: Tensor
    auxiliary_loss: Tensor
    feed_forward: list[FeedForwardOutput]


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention and a dense or routed feed-forward."""

    def __init__(self, config: RunConfig, layer: int, share: ExpertShare) -> None:
        super().__init__()
        model, self.fast = config.model, config.train.implementation == "fast"
        heads = (model.width, model.num_heads, model.num_kv_heads)
        self.attention = Attention(*heads, fast=self.fast)
        self.cross_attention = Attention(*heads, zero_output=True, fast=self.fast)
        self.ffn = build_feed_forward(config, layer, share)
        self.switch = build_block_mixture(config, layer)
        self.modulation_6D = nn.Parameter(torch.zeros(6, model.width))

    def forward(
        self,
        x_BTD: Tensor,
        modulation_B6D: Tensor,
        text_BLD: Tensor,
        mask_B11L: Tensor,
        context: RoutingContext,
    ) -> tuple[Tensor, FeedForwardOutput]:
        """Maps [B, T, D] to [B, T, D], and returns the output of the feed-forward too.

        `context` is that of the batch, in which the block replaces the residual by its own. With Switch-DiT experts
        change the input of the block (`layers/block_mixture.py`), and its answer is their decision.
        """
        if self.switch is None:
            return self._unchanged(x_BTD, modulation_B6D, text_BLD, mask_B11L, context)
        change_BTD, assignment = self.switch(x_BTD, context)
        out_BTD, answer = self._unchanged(x_BTD + change_BTD, modulation_B6D, text_BLD, mask_B11L, context)
        loss = answer.auxiliary_loss if assignment.auxiliary_loss is None else assignment.auxiliary_loss
        return out_BTD - change_BTD, answer._replace(auxiliary_loss=loss, assignment=assignment)

    def _unchanged(
        self, x_BTD: Tensor, modulation_B6D: Tensor, text_BLD: Tensor, mask_B11L: Tensor, context: RoutingContext
    ) -> tuple[Tensor, FeedForwardOutput]:
        """Computes the block on its input as it is."""
        mixed_B6D = modulation_B6D + self.modulation_6D
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = mixed_B6D.unsqueeze(2).unbind(1)
        normed_BTD = modulate(x_BTD, shift_a, scale_a, self.fast)
        x_BTD = gated_residual(x_BTD, gate_a, self.attention(normed_BTD, normed_BTD), self.fast)
        # As in PixArt-alpha, cross-attention is neither modulated nor gated.
        x_BTD = x_BTD + self.cross_attention(x_BTD, text_BLD, mask_B11L)
        own = context._replace(residual_BTD=x_BTD)
        answer: FeedForwardOutput = self.ffn(modulate(x_BTD, shift_f, scale_f, self.fast), own)
        return gated_residual(x_BTD, gate_f, answer.out_BTD, self.fast), answer


class DiT(nn.Module):
    """Predicts what the objective asks for, such as the velocity, from a noisy image, its time and its caption.

    `share` says which experts this process holds, all by default. `checkpointed` turns on activation checkpointing in
    training: only the input of each block is saved, and the backward pass recomputes the rest (Chen et al. 2016, arXiv
    1604.06174).
    """

    position_TD: Tensor

    def __init__(self, config: RunConfig, share: ExpertShare = ALL_EXPERTS, checkpointed: bool = False) -> None:
        super().__init__()
        model, data = config.model, config.data
        self.patch_size, self.image_size = model.patch_size, data.image_size
        self.flow = config.flow  # a sampler asks it what the head predicts
        self.fast = config.train.implementation == "fast"
        self.checkpointed = checkpointed
        self.has_prior_loss = config.routing.prior_loss_weight > 0
        self.routes_by_caption = config.routing.input == "time_label"
        patch = model.patch_size**2 * data.channels
        self.embed = nn.Linear(patch, model.width)
        self.register_buffer(
            "position_TD",
            sinusoidal_positions(model.width, data.image_size // model.patch_size, config.position_side),
            persistent=False,
        )
        self.time = TimeEmbedding(model.width)
        self.text = build_caption_encoder(config)
        self.blocks = nn.ModuleList([Block(config, layer, share) for layer in range(model.num_layers)])
        self.modulation_2D = nn.Parameter(torch.zeros(2, model.width))
        self.head = nn.Linear(model.width, head_width(config))
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        _scale_to_width(self, config)

    def forward(self, noisy_BCHW: Tensor, time_B: Tensor, caption: Caption, keep_BK: Tensor | None = None) -> DiTOutput:
        """Predicts at `noisy_BCHW`; with `keep_BK` (int64 token indices) only for these tokens.

        The other tokens then enter no layer. `caption` holds token ids [B, L], or precomputed features where the data
        have them.
        """
        dtype = self.embed.weight.dtype
        patches_BTP, position_BTD = patchify(noisy_BCHW.to(dtype), self.patch_size), self.position_TD.to(dtype)
        if keep_BK is not None:
            patches_BTP, position_BTD = gather_tokens(patches_BTP, keep_BK), position_BTD[keep_BK]
        tokens_BTD = self.embed(patches_BTP) + position_BTD
        text_BLD, mask_B11L, pooled_BD = self.text(caption)
        alone_BD, time_BD, modulation_B6D = self.time(time_B, pooled_BD)
        context = _routing_context(tokens_BTD, time_B, alone_BD, mask_B11L, keep_BK)
        if self.routes_by_caption:
            context = context._replace(caption_BD=_mean_caption(text_BLD, mask_B11L))
        priors = self._priors(context.time_B)
        answers = []
        for block in self.blocks:
            own = context._replace(prior_BE=priors.get(block))
            tokens_BTD, answer = self._through(block, tokens_BTD, modulation_B6D, text_BLD, mask_B11L, own)
            answers.append(answer)
        shift_B1D, scale_B1D = (self.modulation_2D + time_BD.unsqueeze(1)).chunk(2, dim=1)
        velocity_BKP = self.head(modulate(tokens_BTD, shift_B1D, scale_B1D, self.fast))
        return DiTOutput(velocity_BKP, _summed_auxiliary_loss(answers), answers)

    @torch.no_grad()
    def _priors(self, time_B: Tensor) -> dict[nn.Module, Tensor]:
        """Returns Switch-DiT's prior over the experts of each block that has some; empty without its loss."""
        routers = {block: block.switch.router for block in self.blocks if isinstance(block.switch, BlockMixture)}
        if not (self.training and routers and self.has_prior_loss):
            return {}
        grid_G = torch.linspace(0, 1, PRIOR_GRID, device=time_B.device)
        priors = layer_priors(list(routers.values()), self.time.vector(grid_G), time_B)
        return dict(zip(routers, priors, strict=True))

    def _through(self, block: nn.Module, *inputs: Tensor | RoutingContext) -> tuple[Tensor, FeedForwardOutput]:
        """Runs one block, checkpointed or not. A block has no randomness, so recomputing it repeats every decision."""
        if not (self.checkpointed and self.training and torch.is_grad_enabled()):
            plain: tuple[Tensor, FeedForwardOutput] = block(*inputs)
            return plain
        tokens_BTD, answer = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        # Statistics need the shape of the feed-forward's output. The output itself would keep the memory that
        # checkpointing saves, so it is replaced by an expanded scalar.
        hollow_BTD = answer.out_BTD.new_empty(()).expand(answer.out_BTD.shape)
        return tokens_BTD, answer._replace(out_BTD=hollow_BTD)

    def to_image(self, velocity_BTP: Tensor) -> Tensor:
        """Arranges the tokens of whole images as [B, C, H, W] in float32, as samplers take a velocity."""
        return unpatchify(velocity_BTP.float(), self.patch_size, self.image_size)


def _routing_context(
    x_BTD: Tensor, time_B: Tensor, time_BD: Tensor, mask_B11L: Tensor, keep_BK: Tensor | None
) -> RoutingContext:
    """Returns what every router may read of the batch.

    A caption of one token, which every caption has, is an empty one.
    """
    dropped_B = mask_B11L.sum(dim=(1, 2, 3)) == 1
    position_BT = keep_BK
    if position_BT is None:
        position_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(x_BTD.shape[:2])
    return RoutingContext(x_BTD, time_B.float(), time_BD, dropped_B, position_BT)


def _mean_caption(text_BLD: Tensor, mask_B11L: Tensor) -> Tensor:
    """Returns the mean of a caption's features over its real tokens, [B, D]."""
    real_BL1 = mask_B11L[:, 0, 0].unsqueeze(-1)
    return (text_BLD * real_BL1).sum(dim=1) / real_BL1.sum(dim=1)


@torch.no_grad()
def _scale_to_width(model: nn.Module, config: RunConfig) -> None:
    """Scales first weights from how the standard parametrization draws them to what `config` asks for."""
    for name, parameter in model.named_parameters():
        factor = initial_factor(config, name)
        if factor != 1:
            parameter.mul_(factor)


def gather_tokens(x_BTD: Tensor, keep_BK: Tensor) -> Tensor:
    """Returns the tokens `keep_BK` of each image, [B, K, D]."""
    return x_BTD.gather(1, keep_BK.unsqueeze(-1).expand(-1, -1, x_BTD.shape[-1]))


def _summed_auxiliary_loss(answers: list[FeedForwardOutput]) -> Tensor:
    """Returns the sum of the auxiliary losses of the routed layers; 0 when all layers are dense.

    GShard, Switch Transformer and DiT-MoE too add the losses of all layers. `routing.balance_loss_weight` is therefore
    the weight of each single layer, and its effect on a router does not weaken as the model gets deeper.
    """
    losses = [answer.auxiliary_loss for answer in answers if answer.assignment is not None]
    return torch.stack(losses).sum() if losses else torch.zeros((), device=answers[0].out_BTD.device)
