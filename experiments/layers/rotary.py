"""Rotary 2-D positions: queries and keys turn by angles that grow with the row and with the column of their token.

The product of a query and a key then depends on how far apart their tokens are, and not on where they lie. The form is
axial (RoPE-ViT, arXiv 2403.13298, section 3.1; FiT, arXiv 2402.12376, section 3.2): half of a head turns by the row,
half by the column. The base of the frequencies is RoPE-ViT's 100 and not the 10,000 of language models, since the side
of an image has few tokens.

Legend: B images, T tokens of an image, K kept tokens, H heads, S features of a head, A = S / 2 angles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BASE = 100.0
"""The base of the frequencies, from 1 radian per token down to about 1 / BASE."""


class Rotation(NamedTuple):
    """Holds cosine and sine of the angles of all tokens, float32 [T, 1, A], or [B, K, 1, A] where tokens are kept."""

    cosine: Tensor
    sine: Tensor


def rotation_of_tokens(head_size: int, side: int, span: int, device: torch.device) -> Rotation:
    """Returns the rotation of the tokens of an image with `side` tokens in a row.

    Rows and columns run over the positions of a grid with the side `span`, so that a model of another resolution finds
    them where it has learned them. Angles are computed in float32, whatever the type of the model.
    """
    quarter = head_size // 4
    token = torch.arange(side**2, device=device)
    frequency = BASE ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    # Tokens are in reading order: the row index changes every `side` tokens, the column index with every token.
    axes = [(index * (span / side)).unsqueeze(-1) * frequency for index in (token // side, token % side)]
    angle = torch.cat(axes, dim=-1).unsqueeze(-2)
    return Rotation(angle.cos(), angle.sin())


def rotated(x_BTHS: Tensor, rotation: Rotation) -> Tensor:
    """Turns each pair of features (i, i + A) of every head by the angle i of its token, in the type of the input.

    In float32, because a product in 16 bits would move a token by more than the slowest angles tell apart.
    """
    first, second = x_BTHS.float().chunk(2, dim=-1)
    cosine, sine = rotation
    turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.type_as(x_BTHS)
