"""Fast dispatch of tokens to slots and combine of the results, through an inverse index instead of scattered additions.

One stable sort of the slots by their token yields the slots of each token. With this index the weighted sum of the
experts' results and the gradient of the gather are each one `embedding_bag`: it reads the rows of a token's slots once,
in the order of the slots, and writes one sum. No two threads add to the same row, so results are reproducible bit for
bit, and every shape is fixed by the number of slots. On accelerators the kernels of `routed_kernels.py` compute these
sums and their gradients. The reference that tests compare with is `experts.apply_experts` with `fast=False`.

Legend: N tokens, D width, S slots of all experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from experiments.accelerated import has_kernels

STRETCH_ELEMENTS = 2**16
"""The backward pass of `combine` handles this many elements of slots at once on a CPU: 256 KiB in float32."""


@dataclass(frozen=True)
class Places:
    """The index from slots to tokens and its inverse, all int64.

    `token_S` holds the token in each slot, and `slot_S` the slots sorted by token. `first_N` says where the slots of
    each token begin in `slot_S`; they end where those of the next token begin, so a token in no slot has none.
    """

    token_S: Tensor
    slot_S: Tensor
    first_N: Tensor

    @classmethod
    def of(cls, token_S: Tensor, num_tokens: int) -> Places:
        """Builds both indices from the token in each slot, a number in [0, num_tokens)."""
        # Accelerators sort by radix, one pass for each group of bits, so that int32 keys take half as many as int64.
        key_S = token_S.int() if token_S.device.type != "cpu" and num_tokens < 2**31 else token_S
        # The sort is stable, so the slots of a token keep their order and every sum has one order.
        sorted_S, slot_S = torch.sort(key_S, stable=True)
        every_N = torch.arange(num_tokens, dtype=sorted_S.dtype, device=token_S.device)
        return cls(token_S, slot_S, torch.searchsorted(sorted_S, every_N))


def gather(x_ND: Tensor, places: Places) -> Tensor:
    """Copies the token of each slot to the slot: [N, D] to [S, D]."""
    out: Tensor = _Gather.apply(x_ND, places.token_S, places.slot_S, places.first_N)  # type: ignore[no-untyped-call]
    return out


def combine(y_SD: Tensor, weight_S: Tensor, places: Places) -> Tensor:
    """Sums the weighted results of each token in float32 or wider: [N, D] in the type of `y_SD`; 0 without slots."""
    out: Tensor = _Combine.apply(y_SD, weight_S, places.token_S, places.slot_S, places.first_N)  # type: ignore[no-untyped-call]
    return out


def sum_rows(rows_SD: Tensor, index: Tensor, first_N: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns for each n the sum of the rows `index[first_N[n] : first_N[n + 1]]`, times `weight` where given."""
    if weight is None and has_kernels(rows_SD):
        from experiments.layers import routed_kernels as kernels

        return kernels.sum_rows(rows_SD, index, first_N)
    return torch.embedding_bag(rows_SD, index, first_N, mode=0, per_sample_weights=weight)[0]


def weighted_sum(y_SD: Tensor, weight_S: Tensor, slot_S: Tensor, first_N: Tensor) -> Tensor:
    """Computes the sum of `combine` without widening 16-bit rows in memory.

    `embedding_bag` wants weights in the type of the rows. With 16-bit rows each float32 weight is therefore split into
    its rounded 16-bit value and the 16-bit remainder, and each row enters the sum twice, once with either part. The
    sums run in float32. With bfloat16 the two parts carry about 16 significant bits of a weight instead of 8.
    """
    if has_kernels(y_SD, weight_S):
        from experiments.layers import routed_kernels as kernels

        return kernels.sum_rows(y_SD, slot_S, first_N, weight_S)
    weight_S = weight_S[slot_S]
    if torch.finfo(y_SD.dtype).bits >= torch.finfo(weight_S.dtype).bits:
        return sum_rows(y_SD, slot_S, first_N, weight_S.to(y_SD.dtype))
    # Both parts of a weight stand beside each other, so every slot occurs twice and a token's slots begin at twice the
    # place. The remainder is computed in float32, where it is exact.
    first_S = weight_S.to(y_SD.dtype)
    parts = torch.stack((first_S, (weight_S - first_S).to(y_SD.dtype)), dim=1).flatten()
    return sum_rows(y_SD, slot_S.repeat_interleave(2), 2 * first_N, parts)


def wide_type(y_SD: Tensor, weight_S: Tensor) -> torch.dtype:
    """Returns the type in which products of results and weights are computed."""
    return torch.promote_types(y_SD.dtype, weight_S.dtype)


class _Gather(torch.autograd.Function):
    """Gathers rows like `index_select`, but sums gradients in a fixed order, and in float32 where rows have 16 bits."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_ND: Tensor, token_S: Tensor, slot_S: Tensor, first_N: Tensor) -> Tensor:
        ctx.save_for_backward(slot_S, first_N)
        return x_ND.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slot_S, first_N = ctx.saved_tensors
        return sum_rows(gradients[0].contiguous(), slot_S, first_N), None, None, None


class _Combine(torch.autograd.Function):
    """Computes the weighted sum without writing the weighted results [S, D] to memory."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, y_SD: Tensor, weight_S: Tensor, token_S: Tensor, slot_S: Tensor, first_N: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y_SD, weight_S, token_S)
        return weighted_sum(y_SD, weight_S, slot_S, first_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y_SD, weight_S, token_S = ctx.saved_tensors
        if has_kernels(y_SD, weight_S):
            from experiments.layers import routed_kernels as kernels

            return *kernels.combine_gradients(gradients[0], token_S, y_SD, weight_S), None, None, None
        # A whole [S, D] copy of the gradients in float32 would be the largest tensor of the layer. A CPU makes it a
        # stretch at a time, which stays in its cache.
        grad_y_SD, grad_weight_S = torch.empty_like(y_SD), torch.empty_like(weight_S)
        for rows in _stretches(y_SD):
            grad_out_RD = gradients[0].index_select(0, token_S[rows]).to(wide_type(y_SD, weight_S))
            torch.sum(grad_out_RD * y_SD[rows], dim=1, out=grad_weight_S[rows])
            grad_y_SD[rows] = grad_out_RD.mul_(weight_S[rows].unsqueeze(1))
        return grad_y_SD, grad_weight_S, None, None, None


def _stretches(y_SD: Tensor) -> Iterator[slice]:
    """Returns slices of the slots: on a CPU short enough that their float32 copies stay in its cache, else one."""
    num_slots, width = y_SD.shape
    size = max(1, STRETCH_ELEMENTS // max(1, width)) if y_SD.device.type == "cpu" else max(1, num_slots)
    return (slice(first, first + size) for first in range(0, num_slots, size))
