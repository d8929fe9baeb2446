"""The diffusion transformer: patches, time and caption or class, blocks with one feed-forward each, and the head.

`model.block` names the block (`models/blocks`), which says what the model is conditioned on. With adaLN-single the
modulation of the head is a learned table beside the embedded time (PixArt-alpha), else a network of its own (DiT). The
head starts at zero, so that the model predicts zero.

The model computes no loss: it returns the prediction and each layer's `FeedForwardOutput`.

Legend: B images, C channels, H, W height and width, T tokens, K kept tokens, P values of a patch, D width, L caption
length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from experiments.config.block_sizes import head_width
from experiments.config.blocks import block_of
from experiments.config.budget import PRIOR_GRID
from experiments.config.parametrization import initial_factor
from experiments.config.repa import aligned_layer
from experiments.config.schema import RunConfig
from experiments.layers.attention import modulate
from experiments.layers.block_mixture import BlockMixture
from experiments.layers.expert_parallel import ALL_EXPERTS, ExpertShare
from experiments.layers.rotary import Rotation, rotation_of_tokens
from experiments.models.alignment_loss import TokenProjector
from experiments.models.blocks.block import BlockOutput, Conditioning, build_block
from experiments.models.embed import (
    Caption,
    ClassTable,
    EncodedCaption,
    TextEncoder,
    TimeEmbedding,
    build_caption_encoder,
    gather_tokens,
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
    layers. feed_forward: one `FeedForwardOutput` per block, in order. aligned_BKF: in training with REPA, the features
    that its network makes of the tokens after one block.
    """

    velocity_BKP: Tensor
    auxiliary_loss: Tensor
    feed_forward: list[FeedForwardOutput]
    aligned_BKF: Tensor | None = None


class DiT(nn.Module):
    """Predicts what the objective asks for, such as the velocity, from a noisy image, its time, and caption or class.

    `share` says which experts this process holds, all by default. `checkpointed` turns on activation checkpointing in
    training: only the input of each block is saved, and the backward pass recomputes the rest (Chen et al. 2016, arXiv
    1604.06174).
    """

    position_TD: Tensor | None
    """Fixed positions that are added to the tokens; None with rotary positions."""

    def __init__(self, config: RunConfig, share: ExpertShare = ALL_EXPERTS, checkpointed: bool = False) -> None:
        super().__init__()
        model, data, row = config.model, config.data, block_of(config)
        self.patch_size, self.image_size = model.patch_size, data.image_size
        self.flow = config.flow  # a sampler asks it what the head predicts
        self.fast = config.train.is_fast
        self.checkpointed = checkpointed
        self.has_prior_loss = config.routing.prior_loss_weight > 0
        self.routes_by_caption = config.routing.input == "time_label"
        patch = model.patch_size**2 * data.channels
        self.read_values = patch * (2 if config.flow.learned_sigma else 1)
        self.embed = nn.Linear(patch, model.width)
        side = data.image_size // model.patch_size
        self.position_side, self.head_size = config.position_side, model.width // model.num_heads
        turns, table = model.positions == "rope", (model.width, side, row.columns_first, config.position_side)
        self.register_buffer("position_TD", None if turns else sinusoidal_positions(*table), persistent=False)
        self._rotations: dict[torch.device, Rotation] = {}
        self.time = TimeEmbedding(model.width, row.shared_modulation, model.time_scale)
        self.text = build_caption_encoder(config)
        self.blocks = nn.ModuleList([build_block(config, layer, share) for layer in range(model.num_layers)])
        shared, tables = row.shared_modulation, torch.zeros(2, model.width)
        self.modulation_2D = nn.Parameter(tables) if shared else None
        self.modulation = None if shared else _linear_of_zeros(model.width, 2 * model.width)
        self.head = _linear_of_zeros(model.width, head_width(config))
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.aligned_layer = aligned_layer(config)
        self.repa = None if self.aligned_layer is None else TokenProjector(config)
        _scale_to_width(self, config)

    def forward(self, noisy_BCHW: Tensor, time_B: Tensor, caption: Caption, keep_BK: Tensor | None = None) -> DiTOutput:
        """Predicts at `noisy_BCHW`; with `keep_BK` (int64 token indices) only for these tokens.

        The other tokens then enter no layer. `caption` holds token ids [B, L], classes [B] with a block that is
        conditioned on them, or precomputed features where the data have them.
        """
        dtype = self.embed.weight.dtype
        patches_BTP = patchify(noisy_BCHW.to(dtype), self.patch_size)
        if keep_BK is not None:
            patches_BTP = gather_tokens(patches_BTP, keep_BK)
        tokens_BTD, rotation = self._with_positions(self.embed(patches_BTP), keep_BK)
        encoded: EncodedCaption = self.text(caption)
        alone_BD, vector_BD, modulation_B6D = self.time(time_B, encoded.pooled_BD)
        conditioning = Conditioning(vector_BD, modulation_B6D, encoded.mask_B11L, rotation)
        text_BLD = encoded.text_BLD
        context = _routing_context(tokens_BTD, time_B, alone_BD, encoded.dropped_B, keep_BK)
        if self.routes_by_caption:
            context = context._replace(caption_BD=encoded.vector())
        priors = self._priors(context.time_B)
        answers, aligned_BKF = [], None
        for layer, block in enumerate(self.blocks):
            own = context._replace(prior_BE=priors.get(block))
            tokens_BTD, text_BLD, answer = self._through(block, tokens_BTD, text_BLD, conditioning, own)
            answers.append(answer)
            if self.repa is not None and layer == self.aligned_layer and self.training:
                aligned_BKF = self.repa(tokens_BTD)
        values_BKP = self.head(modulate(tokens_BTD, *self._head_modulation(vector_BD), self.fast))
        # Outputs for a learned variance stand behind the others. Only an objective that reads them is given them.
        read_BKP = values_BKP[..., : self.read_values]
        return DiTOutput(read_BKP, _summed_auxiliary_loss(answers), answers, aligned_BKF)

    def _with_positions(self, tokens_BTD: Tensor, keep_BK: Tensor | None) -> tuple[Tensor, Rotation | None]:
        """Adds the table of positions to the tokens, or returns by how much they turn in every self-attention."""
        if self.position_TD is None:
            rotation = self._rotation(tokens_BTD.device)
            return tokens_BTD, rotation if keep_BK is None else Rotation(*(each[keep_BK] for each in rotation))
        position_BTD = self.position_TD.to(tokens_BTD.dtype)
        return tokens_BTD + (position_BTD if keep_BK is None else position_BTD[keep_BK]), None

    def _rotation(self, device: torch.device) -> Rotation:
        """Returns the rotation of all tokens, which is computed once for each device.

        It is no buffer, because a model in 16 bits would round the angles of its buffers.
        """
        if device not in self._rotations:
            side = self.image_size // self.patch_size
            with torch.inference_mode(False):  # a tensor of inference mode could not serve a later training
                self._rotations[device] = rotation_of_tokens(self.head_size, side, self.position_side, device)
        return self._rotations[device]

    def _head_modulation(self, vector_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns shift and scale of the last layer norm, [B, 1, D] each."""
        if self.modulation_2D is not None:
            mixed_B2D = self.modulation_2D + vector_BD.unsqueeze(1)
        else:
            assert self.modulation is not None
            mixed_B2D = self.modulation(F.silu(vector_BD)).unflatten(1, (2, -1))
        shift_B1D, scale_B1D = mixed_B2D.chunk(2, dim=1)
        return shift_B1D, scale_B1D

    @torch.no_grad()
    def _priors(self, time_B: Tensor) -> dict[nn.Module, Tensor]:
        """Returns Switch-DiT's prior over the experts of each block that has some; empty without its loss."""
        routers = {block: block.switch.router for block in self.blocks if isinstance(block.switch, BlockMixture)}
        if not (self.training and routers and self.has_prior_loss):
            return {}
        grid_G = torch.linspace(0, 1, PRIOR_GRID, device=time_B.device)
        priors = layer_priors(list(routers.values()), self.time.vector(grid_G), time_B)
        return dict(zip(routers, priors, strict=True))

    def _through(self, block: nn.Module, *inputs: Tensor | Conditioning | RoutingContext | None) -> BlockOutput:
        """Runs one block, checkpointed or not. A block has no randomness, so recomputing it repeats every decision."""
        if not (self.checkpointed and self.training and torch.is_grad_enabled()):
            plain: BlockOutput = block(*inputs)
            return plain
        computed: BlockOutput = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        answer = computed.answer
        # Statistics need the shape of the feed-forward's output. The output itself would keep the memory that
        # checkpointing saves, so it is replaced by an expanded scalar.
        hollow_BTD = answer.out_BTD.new_empty(()).expand(answer.out_BTD.shape)
        return computed._replace(answer=answer._replace(out_BTD=hollow_BTD))

    def null_of(self, caption: Tensor) -> Tensor:
        """Returns as many empty captions, or null classes, as `caption` holds token ids [B, L] or classes [B]."""
        assert isinstance(self.text, TextEncoder | ClassTable), "the empty caption of features is in the data set"
        return self.text.null(caption)

    def to_image(self, velocity_BTP: Tensor) -> Tensor:
        """Arranges the tokens of whole images as [B, C, H, W] in float32, as samplers take a velocity."""
        return unpatchify(velocity_BTP.float(), self.patch_size, self.image_size)


def _routing_context(
    x_BTD: Tensor, time_B: Tensor, time_BD: Tensor, dropped_B: Tensor, keep_BK: Tensor | None
) -> RoutingContext:
    """Returns what every router may read of the batch."""
    position_BT = keep_BK
    if position_BT is None:
        position_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(x_BTD.shape[:2])
    return RoutingContext(x_BTD, time_B.float(), time_BD, dropped_B, position_BT)


def _linear_of_zeros(fan_in: int, fan_out: int) -> nn.Linear:
    linear = nn.Linear(fan_in, fan_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


@torch.no_grad()
def _scale_to_width(model: nn.Module, config: RunConfig) -> None:
    """Scales first weights from how the standard parametrization draws them to what `config` asks for."""
    for name, parameter in model.named_parameters():
        factor = initial_factor(config, name)
        if factor != 1:
            parameter.mul_(factor)


def _summed_auxiliary_loss(answers: list[FeedForwardOutput]) -> Tensor:
    """Returns the sum of the auxiliary losses of the routed layers; 0 when all layers are dense.

    GShard, Switch Transformer and DiT-MoE too add the losses of all layers. `routing.balance_loss_weight` is therefore
    the weight of each single layer, and its effect on a router does not weaken as the model gets deeper.
    """
    losses = [answer.auxiliary_loss for answer in answers if answer.assignment is not None]
    return torch.stack(losses).sum() if losses else torch.zeros((), device=answers[0].out_BTD.device)
