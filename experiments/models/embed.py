"""The inputs of the transformer: patches, 2-D positions, the timestep, and captions or classes.

Patches and sinusoidal positions follow DiT (arXiv 2212.09748); the one modulation layer for all blocks is
PixArt-alpha's adaLN-single (arXiv 2310.00426). The text encoder is ours: small, trained with the model, over the closed
vocabulary of the data. A caption begins with a start token, so that the empty one still has something to attend to.
Where captions come as features of T5 and CLIP instead, tokens pass through two layers (PixArt-alpha's caption
projection), or one where blocks have a text stream, and pooled features through two layers onto the embedded timestep
(SD3, arXiv 2403.03206, section 4).
The class of an image is a row of a table, which is added to the embedded timestep (DiT).

Legend: B images, C channels, H, W height and width, T tokens of an image, P values of a patch, D width, L caption
length, V text width (of the trained encoder, or of T5), U width of pooled features.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.blocks import block_of
from experiments.config.budget import TIME_FREQUENCIES
from experiments.config.caption_kinds import PAD_TOKEN, START_TOKEN, ClassLabels, FeatureCaptions
from experiments.config.data_sets import captions_of
from experiments.config.schema import RunConfig

TextFeatures = tuple[Tensor, Tensor, Tensor]
"""T5 features [B, L, V], the number of real tokens of each caption (int64 [B]), and pooled CLIP features [B, U]."""
Caption = Tensor | TextFeatures
"""The captions of a batch: token ids, int64 [B, L], classes, int64 [B], or precomputed features."""


class EmbeddedTime(NamedTuple):
    """The time as the network uses it: alone, with pooled caption features added, and the modulation of the latter.

    The modulation is None where every block has its own.
    """

    alone_BD: Tensor
    vector_BD: Tensor
    modulation_B6D: Tensor | None


class EncodedCaption(NamedTuple):
    """A caption, or a class, as the model uses it.

    `text_BLD` is what cross-attention attends to, where `mask_B11L` is True; both are None for classes. `pooled_BD` is
    added to the embedded timestep; it is None for captions without pooled features. `dropped_B` says which images have
    the empty caption or the null class.
    """

    text_BLD: Tensor | None
    mask_B11L: Tensor | None
    pooled_BD: Tensor | None
    dropped_B: Tensor

    @classmethod
    def of_text(cls, text_BLD: Tensor, mask_B11L: Tensor, pooled_BD: Tensor | None = None) -> EncodedCaption:
        """Returns a caption in words. A caption of one token, which every caption has, is an empty one."""
        return cls(text_BLD, mask_B11L, pooled_BD, mask_B11L.sum(dim=(1, 2, 3)) == 1)

    def vector(self) -> Tensor:
        """Returns one vector for each image, [B, D]: the mean of a caption's features over real tokens, or its class's.

        Routers with `routing.input=time_label` read it.
        """
        if self.text_BLD is None or self.mask_B11L is None:
            assert self.pooled_BD is not None
            return self.pooled_BD
        real_BL1 = self.mask_B11L[:, 0, 0].unsqueeze(-1)
        return (self.text_BLD * real_BL1).sum(dim=1) / real_BL1.sum(dim=1)


def patchify(image_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cuts [B, C, H, W] into tokens [B, T, P] in reading order, where P = C patch_size^2."""
    patches = F.unfold(image_BCHW, patch_size, stride=patch_size)
    return patches.transpose(1, 2)


def gather_tokens(x_BTD: Tensor, keep_BK: Tensor) -> Tensor:
    """Returns the tokens `keep_BK` of each image, [B, K, D]."""
    return x_BTD.gather(1, keep_BK.unsqueeze(-1).expand(-1, -1, x_BTD.shape[-1]))


def unpatchify(patches_BTP: Tensor, patch_size: int, image_size: int) -> Tensor:
    """Inverts `patchify`: joins tokens [B, T, P] to images [B, C, H, W]."""
    return F.fold(patches_BTP.transpose(1, 2), image_size, patch_size, stride=patch_size)


def sinusoidal_positions(width: int, side: int, columns_first: bool = False, span: int | None = None) -> Tensor:
    """Returns fixed 2-D position embeddings [T, D]: half of the width encodes the row, half the column (MAE, DiT).

    The public code of MAE and DiT has the column in the first half (`columns_first`). With `span` the `side` rows and
    columns run over the positions of a grid with this side, so that a model of another resolution finds them where it
    has learned them (interpolation, as in PixArt-Sigma, arXiv 2403.04692, section 3.3).
    """
    quarter = width // 4
    frequency = 10_000 ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    angle = (torch.arange(side, dtype=torch.float32) * ((span or side) / side)).outer(frequency)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    # Tokens are in reading order: the row index changes every `side` tokens, the column index with every token.
    rows, columns = axis.repeat_interleave(side, dim=0), axis.repeat(side, 1)
    halves = (columns, rows) if columns_first else (rows, columns)
    return F.pad(torch.cat(halves, dim=1), (0, width - 4 * quarter))


class TimeEmbedding(nn.Module):
    """Embeds the time t in [0, 1] as a vector [B, D] and, with adaLN-single, as the modulation [B, 6, D] of all blocks.

    `scale` is what t is multiplied by: 1000 gives the range of DiT's timesteps.
    """

    def __init__(self, width: int, shared_modulation: bool = True, scale: float = 1000.0) -> None:
        super().__init__()
        self.scale = scale
        self.mlp_in = nn.Linear(TIME_FREQUENCIES, width)
        self.mlp_out = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 6 * width) if shared_modulation else None
        nn.init.normal_(self.mlp_in.weight, std=0.02)
        nn.init.normal_(self.mlp_out.weight, std=0.02)
        for linear in (self.mlp_in, self.mlp_out) if self.modulation is None else (self.modulation,):
            nn.init.zeros_(linear.bias)  # DiT's public code starts all biases at 0
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)

    def vector(self, time_B: Tensor) -> Tensor:
        """Returns the embedded time alone, [B, D]. Angles are computed in float32."""
        half = TIME_FREQUENCIES // 2
        frequency = torch.exp(-math.log(10_000) / half * torch.arange(half, device=time_B.device))
        angle = self.scale * time_B.float().unsqueeze(1) * frequency
        wave = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.mlp_in.weight.dtype)
        time_BD: Tensor = self.mlp_out(F.silu(self.mlp_in(wave)))
        return time_BD

    def forward(self, time_B: Tensor, pooled_BD: Tensor | None = None) -> EmbeddedTime:
        """Embeds the time [B]; `pooled_BD`, where given, is added before the modulation follows."""
        alone_BD = self.vector(time_B)
        time_BD = alone_BD if pooled_BD is None else alone_BD + pooled_BD
        if self.modulation is None:
            return EmbeddedTime(alone_BD, time_BD, None)
        return EmbeddedTime(alone_BD, time_BD, self.modulation(F.silu(time_BD)).unflatten(1, (6, -1)))


def build_caption_encoder(config: RunConfig) -> nn.Module:
    """Builds the module that turns the captions of the data into an `EncodedCaption`."""
    model, captions = config.model, captions_of(config)
    if isinstance(captions, ClassLabels):
        return ClassTable(captions.num_classes, model.width)
    has_stream = block_of(config).has_text_stream
    if isinstance(captions, FeatureCaptions):
        num_layers: Literal[1, 2] = 1 if has_stream else 2
        return FeatureProjection(captions.text_width, captions.pooled_width, model.width, num_layers)
    sizes = (captions.vocab_size, captions.length, model.text_width, model.text_layers, model.width)
    return TextEncoder(*sizes, pools=has_stream)


class ClassTable(nn.Module):
    """Embeds classes as rows of a table, the last of which is the null class; it has (num_classes + 1) D parameters."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, label_B: Tensor) -> EncodedCaption:
        """Looks up a batch of classes, int64 [B]."""
        return EncodedCaption(None, None, self.table(label_B), label_B == self.num_classes)

    def null(self, label_B: Tensor) -> Tensor:
        """Returns as many null classes."""
        return torch.full_like(label_B, self.num_classes)


class TextBlock(nn.Module):
    """A pre-norm transformer block over a caption, with 12 V^2 + 2 V parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = max(1, width // 64)
        self.norm_attention = nn.RMSNorm(width)
        self.norm_ffn = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ffn_in = nn.Linear(width, 4 * width, bias=False)
        self.ffn_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BLV: Tensor, mask_B11L: Tensor) -> Tensor:
        """Maps [B, L, V] to [B, L, V]; padding is not attended to."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm_attention(x_BLV)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11L)
        x_BLV = x_BLV + self.out(mixed.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.ffn_in(self.norm_ffn(x_BLV)))
        out_BLV: Tensor = x_BLV + self.ffn_out(hidden)
        return out_BLV


class TextEncoder(nn.Module):
    """Encodes caption ids [B, L] as features [B, L, D] with a mask that is True at real tokens.

    With `pools` their mean over real tokens is added to the embedded time, as pooled features of CLIP are in SD3.
    """

    def __init__(
        self, vocab_size: int, length: int, text_width: int, num_layers: int, width: int, pools: bool = False
    ) -> None:
        super().__init__()
        self.pools = pools
        self.token = nn.Embedding(vocab_size, text_width)
        self.position_LV = nn.Parameter(torch.empty(length, text_width))
        self.blocks = nn.ModuleList([TextBlock(text_width) for _ in range(num_layers)])
        self.norm = nn.RMSNorm(text_width)
        self.project = nn.Linear(text_width, width)
        nn.init.normal_(self.token.weight, std=0.5)
        nn.init.normal_(self.position_LV, std=0.5)

    def forward(self, caption_BL: Tensor) -> EncodedCaption:
        """Encodes a batch. Every caption must begin with a start token, since padding alone cannot be attended to."""
        mask_B11L = (caption_BL != PAD_TOKEN)[:, None, None, :]
        x_BLV = self.token(caption_BL) + self.position_LV
        for block in self.blocks:
            x_BLV = block(x_BLV, mask_B11L)
        encoded = EncodedCaption.of_text(self.project(self.norm(x_BLV)), mask_B11L)
        return encoded._replace(pooled_BD=encoded.vector()) if self.pools else encoded

    def null(self, caption_BL: Tensor) -> Tensor:
        """Returns the token ids of as many empty captions."""
        null_BL = torch.full_like(caption_BL, PAD_TOKEN)
        null_BL[:, 0] = START_TOKEN
        return null_BL


class FeatureProjection(nn.Module):
    """Projects precomputed text features to the width of the model; it has (V + U + 2 D + 4) D parameters.

    With one layer, token features pass through a single linear map (SD3), and it has (V + U + D + 3) D.
    """

    def __init__(self, text_width: int, pooled_width: int, width: int, num_layers: Literal[1, 2] = 2) -> None:
        super().__init__()
        self.text_in = nn.Linear(text_width, width)
        self.text_out = nn.Linear(width, width) if num_layers == 2 else None
        self.pooled_in, self.pooled_out = nn.Linear(pooled_width, width), nn.Linear(width, width)

    def forward(self, caption: TextFeatures) -> EncodedCaption:
        """Projects a batch. Every caption has at least one token, since T5 adds an end token even to the empty one."""
        text_BLV, length_B, pooled_BU = caption
        dtype, place_L = self.text_in.weight.dtype, torch.arange(text_BLV.shape[1], device=text_BLV.device)
        mask_B11L = (place_L < length_B[:, None])[:, None, None, :]
        text_BLD = self.text_in(text_BLV.to(dtype))
        if self.text_out is not None:
            text_BLD = self.text_out(F.gelu(text_BLD, approximate="tanh"))
        return EncodedCaption.of_text(text_BLD, mask_B11L, self.pooled_out(F.silu(self.pooled_in(pooled_BU.to(dtype)))))
