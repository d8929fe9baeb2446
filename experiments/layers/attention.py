"""The parts of a block: grouped-query attention and adaptive layer norm.

With `model.block=pixart` queries and keys are layer-normalised per head (ViT-22B, arXiv 2302.05442). EC-DIT leaves this
open; we do it for stability at high learning rates. `model.qk_norm` names other norms (`config/blocks.py`). Groups of
query heads share key and value heads (EC-DIT: 18 query heads over 6).

Legend: B images, T tokens, M tokens attended to, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.accelerated import has_kernels
from experiments.config.blocks import QkNorm, block_of
from experiments.config.schema import RunConfig
from experiments.layers.rotary import Rotation, rotated

NORM_EPSILON = 1e-6
"""The epsilon of the layer norm without weights, as in DiT."""


class HeadNorm(nn.LayerNorm):
    """Layer norm of each head by itself, in a kernel of its own: torch's are slow with rows as short as a head."""

    def __init__(self, head_size: int, fast: bool) -> None:
        super().__init__(head_size, bias=False)
        self.fast = fast

    def forward(self, x_BTHK: Tensor) -> Tensor:
        """Maps [B, T, H, K] to the same shape, in the type of the input."""
        if self.fast and has_kernels(x_BTHK):
            from experiments.layers import block_kernels as kernels

            return kernels.norm_heads(x_BTHK, self.weight, self.eps)
        return super().forward(x_BTHK)


def head_norm(kind: QkNorm, head_size: int, fast: bool) -> nn.Module:
    """Builds the norm of queries or keys, which maps [B, T, H, K] to the same shape."""
    if kind == "layer":
        return HeadNorm(head_size, fast)
    if kind == "affine":
        return nn.LayerNorm(head_size, eps=NORM_EPSILON)
    return nn.RMSNorm(head_size, eps=NORM_EPSILON) if kind == "rms" else nn.Identity()


class Attention(nn.Module):
    """Self- or cross-attention.

    It has 2 D^2 (1 + num_kv_heads / num_heads) weights, biases where asked for, and two norms over the elements of a
    head.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        zero_output: bool = False,
        fast: bool = True,
        has_biases: bool = False,
        qk_norm: QkNorm = "layer",
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        head_size = width // num_heads
        self.query = nn.Linear(width, width, bias=has_biases)
        self.key_value = nn.Linear(width, 2 * num_kv_heads * head_size, bias=has_biases)
        self.out = nn.Linear(width, width, bias=has_biases)
        self.norm_query = head_norm(qk_norm, head_size, fast)
        self.norm_key = head_norm(qk_norm, head_size, fast)
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.xavier_uniform_(self.key_value.weight)
        if zero_output:
            # With zero output weights the residual branch adds nothing at first, so that the block begins without it.
            nn.init.zeros_(self.out.weight)
        else:
            nn.init.xavier_uniform_(self.out.weight)
        if has_biases:
            with torch.no_grad():
                # DiT's public code has one matrix [3 D, D] for all three, and draws it Xavier-uniform as a whole.
                of_all = width + self.key_value.out_features + width
                self.query.weight.mul_((2 * width / of_all) ** 0.5)
                self.key_value.weight.mul_(((of_all - width) / of_all) ** 0.5)
            for linear in (self.query, self.key_value, self.out):
                nn.init.zeros_(linear.bias)

    def forward(
        self, x_BTD: Tensor, context_BMD: Tensor, mask_B11M: Tensor | None = None, rotation: Rotation | None = None
    ) -> Tensor:
        """Attends from the tokens `x_BTD` to the tokens `context_BMD` where the mask is True; returns [B, T, D].

        With a `rotation`, which self-attention alone is given, queries and keys turn after their norm.
        """
        query, (key, value) = self.queries(x_BTD, rotation), self.keys_and_values(context_BMD, rotation)
        out_BTD: Tensor = self.out(attend(query, key, value, mask_B11M))
        return out_BTD

    def queries(self, x_BTD: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Returns the normalised and turned queries of tokens, [B, H, T, K] with K elements of a head."""
        normed: Tensor = self.norm_query(self.query(x_BTD).unflatten(-1, (self.num_heads, -1)))
        return (normed if rotation is None else rotated(normed, rotation)).transpose(1, 2)

    def keys_and_values(self, x_BTD: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """Returns the normalised and turned keys, and the values, with the heads of keys and values in place of H."""
        key, value = self.key_value(x_BTD).unflatten(-1, (2 * self.num_kv_heads, -1)).chunk(2, dim=2)
        normed: Tensor = self.norm_key(key)
        return (normed if rotation is None else rotated(normed, rotation)).transpose(1, 2), value.transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask_B11M: Tensor | None = None) -> Tensor:
    """Returns what every query reads of the values where the mask is True, with all heads side by side: [B, T, D]."""
    shared = key.shape[1] != query.shape[1]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11M, enable_gqa=shared)
    return mixed.transpose(1, 2).flatten(2)


def build_attention(config: RunConfig, zero_output: bool = False) -> Attention:
    """Builds the attention that `model.block` asks for; the one to captions has the same form as the one to tokens."""
    model, row = config.model, block_of(config)
    heads, fast = (model.width, model.num_heads, model.num_kv_heads), config.train.is_fast
    return Attention(*heads, zero_output, fast, row.has_biases, row.qk_norm)


def modulate(x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, fast: bool = True) -> Tensor:
    """Applies layer norm without weights, then the timestep's scale and shift (AdaLN)."""
    if fast and has_kernels(x_BTD):
        from experiments.layers import block_kernels as kernels

        return kernels.modulate(x_BTD, shift_B1D, scale_B1D, NORM_EPSILON)
    normed = F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=NORM_EPSILON)
    return torch.addcmul(shift_B1D, normed, 1 + scale_B1D)


def gated_residual(x_BTD: Tensor, gate_B1D: Tensor, y_BTD: Tensor, fast: bool = True) -> Tensor:
    """Computes x + gate y with the timestep's gate."""
    if fast and has_kernels(x_BTD):
        from experiments.layers import block_kernels as kernels

        return kernels.gated_residual(x_BTD, gate_B1D, y_BTD)
    return x_BTD + gate_B1D * y_BTD
