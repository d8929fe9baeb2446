"""Applies stacked experts to the slots of soft MoE, which are mixtures of tokens (`routing/soft_moe.py`).

Legend: B images, T tokens of an image, N = B T, D width, E experts, p slots of an expert for an image, S = E p.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments.routing.mixture import Mixture


def apply_to_slots(
    experts: Callable[[Tensor, Tensor | None, bool], Tensor],
    x_ND: Tensor,
    mixture: Mixture,
    num_experts: int,
    fast: bool = True,
) -> Tensor:
    """Mixes tokens into slots, applies each expert to its own, and mixes the results into tokens: [N, D] to [N, D].

    Dispatch and combine are a batched matmul each, [T, S] for every image. They run in the type of `x_ND`, whose sums
    are float32 also where it has 16 bits. `fast=False` is the reference, which multiplies in float32.
    """
    dispatch_BTS, combine_BTS = mixture.dispatch_BTS, mixture.combine_BTS
    assert dispatch_BTS is not None, "a mixture is applied once"
    assert combine_BTS is not None, "a mixture is applied once"
    num_images, num_tokens, num_slots = dispatch_BTS.shape
    dtype = x_ND.dtype if fast else torch.promote_types(x_ND.dtype, torch.float32)
    x_BTD = x_ND.view(num_images, num_tokens, -1)
    slots_BSD = torch.bmm(dispatch_BTS.mT.to(dtype), x_BTD.to(dtype)).to(x_ND.dtype)
    # The experts take slots sorted by expert: [B, E, p, D] to [E, B, p, D], and back.
    slots_MD = slots_BSD.view(num_images, num_experts, -1, x_BTD.shape[2]).transpose(0, 1).reshape(-1, x_BTD.shape[2])
    y_MD = experts(slots_MD, None, fast)
    y_BSD = y_MD.view(num_experts, num_images, -1, x_BTD.shape[2]).transpose(0, 1).reshape(num_images, num_slots, -1)
    return torch.bmm(combine_BTS.to(dtype), y_BSD.to(dtype)).to(x_ND.dtype).flatten(0, 1)
