"""Joint attention of two streams of tokens: each has weights of its own, and one softmax reaches over both.

SD3 (arXiv 2403.03206, figure 2): queries, keys and values of image and text tokens are computed by separate maps (and
separate norms of queries and keys), joined along the tokens, and what the heads return is split again. Padding of
captions is masked as a key, as in the other blocks here; SD3 has the features of padding attended to.

Legend: B images, T image tokens, L caption length, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.layers.attention import Attention, attend


def joint_attention(
    image: Attention, text: Attention, image_BTD: Tensor, text_BLD: Tensor, mask_B11L: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what the heads of both streams read of each other, [B, T, D] and [B, L, D], before their last maps."""
    (key, value), (text_key, text_value) = image.keys_and_values(image_BTD), text.keys_and_values(text_BLD)
    query = torch.cat((image.queries(image_BTD), text.queries(text_BLD)), dim=2)
    num_tokens = image_BTD.shape[1]
    # Every image token may be attended to, so that the mask is extended by True in front.
    mask_B11M = F.pad(mask_B11L, (num_tokens, 0), value=True)
    mixed_BMD = attend(query, torch.cat((key, text_key), dim=2), torch.cat((value, text_value), dim=2), mask_B11M)
    image_BTD, text_BLD = torch.split(mixed_BMD, [num_tokens, text_BLD.shape[1]], dim=1)
    return image_BTD, text_BLD
