"""Tokens into slots and back, fast: an inverse index instead of scattered additions.

Which slots hold a token is one stable sort of the slots by their token. With it the weighted sum of the experts'
results, and the gradient of the gather, are `embedding_bag`: each output row is read, scaled and summed once, in the
order of its slots. No row is added to by two workers, so the result is the same every time on every processor, and
every shape is fixed by the number of slots. On accelerators `kernels.py` does the sums and their gradient. The plain
form that this is held against is `experts.apply_experts` with `fast=False`.

Legend: N tokens, D width, S slots of all experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from experiments.routing.accelerated import has_kernels

STRETCH_ELEMENTS = 2**16
"""Of the slots' rows that the gradient of `combine` has in hand at once on a processor: 256 KiB in float32."""


@dataclass(frozen=True)
class Places:
    """Where each token sits; all int64.

    token_S: the token in each slot. slot_S: the slots sorted by token. first_N: where each token's slots begin in
    `slot_S`; a token in no slot has an empty stretch.
    """

    token_S: Tensor
    slot_S: Tensor
    first_N: Tensor

    @classmethod
    def of(cls, token_S: Tensor, num_tokens: int) -> Places:
        """From the tokens of the slots, which lie in [0, num_tokens)."""
        key_S = token_S.int() if token_S.device.type != "cpu" and num_tokens < 2**31 else token_S  # half the passes
        sorted_S, slot_S = torch.sort(key_S, stable=True)
        every_N = torch.arange(num_tokens, dtype=sorted_S.dtype, device=token_S.device)
        return cls(token_S, slot_S, torch.searchsorted(sorted_S, every_N))


def gather(x_ND: Tensor, places: Places) -> Tensor:
    """The token of each slot: [N, D] to [S, D]."""
    out: Tensor = _Gather.apply(x_ND, places.token_S, places.slot_S, places.first_N)  # type: ignore[no-untyped-call]
    return out


def combine(y_SD: Tensor, weight_S: Tensor, places: Places) -> Tensor:
    """Each token's slots, weighted and summed in float32 or better: [N, D] in the type of `y_SD`; 0 for no slot."""
    out: Tensor = _Combine.apply(y_SD, weight_S, places.token_S, places.slot_S, places.first_N)  # type: ignore[no-untyped-call]
    return out


def sum_rows(rows_SD: Tensor, index: Tensor, first_N: Tensor, weight: Tensor | None = None) -> Tensor:
    """For each n the sum of the rows `index[first_N[n] : first_N[n + 1]]`, times `weight` where given."""
    if weight is None and has_kernels(rows_SD):
        from experiments.routing import kernels

        return kernels.sum_rows(rows_SD, index, first_N)
    return torch.embedding_bag(rows_SD, index, first_N, mode=0, per_sample_weights=weight)[0]


def weighted_sum(y_SD: Tensor, weight_S: Tensor, slot_S: Tensor, first_N: Tensor) -> Tensor:
    """As `combine`. Rows of 16 bits are read as they are: a weight of 32 is then two of 16, what the first leaves out.

    `embedding_bag` sums them in float32, so that the two parts together are as good as the whole weight.
    """
    if has_kernels(y_SD, weight_S):
        from experiments.routing import kernels

        return kernels.sum_rows(y_SD, slot_S, first_N, weight_S)
    weight_S = weight_S[slot_S]
    if torch.finfo(y_SD.dtype).bits >= torch.finfo(weight_S.dtype).bits:
        return sum_rows(y_SD, slot_S, first_N, weight_S.to(y_SD.dtype))
    first_S = weight_S.to(y_SD.dtype)
    parts = torch.stack((first_S, (weight_S - first_S).to(y_SD.dtype)), dim=1).flatten()
    return sum_rows(y_SD, slot_S.repeat_interleave(2), 2 * first_N, parts)


def wide_type(y_SD: Tensor, weight_S: Tensor) -> torch.dtype:
    """What products of the two are taken in."""
    return torch.promote_types(y_SD.dtype, weight_S.dtype)


class _Gather(torch.autograd.Function):
    """`index_select`, whose gradient sums in a fixed order and in float32 inside."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_ND: Tensor, token_S: Tensor, slot_S: Tensor, first_N: Tensor) -> Tensor:
        ctx.save_for_backward(slot_S, first_N)
        return x_ND.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slot_S, first_N = ctx.saved_tensors
        return sum_rows(gradients[0].contiguous(), slot_S, first_N), None, None, None


class _Combine(torch.autograd.Function):
    """The gates ride on the sum: neither the weighted results nor their gradient is written out on its own."""

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
            from experiments.routing import kernels

            return *kernels.combine_gradients(gradients[0], token_S, y_SD, weight_S), None, None, None
        of_y_SD, of_weight_S = torch.empty_like(y_SD), torch.empty_like(weight_S)
        for rows in _stretches(y_SD):
            of_out_RD = gradients[0].index_select(0, token_S[rows]).to(wide_type(y_SD, weight_S))
            torch.sum(of_out_RD * y_SD[rows], dim=1, out=of_weight_S[rows])
            of_y_SD[rows] = of_out_RD.mul_(weight_S[rows].unsqueeze(1))
        return of_y_SD, of_weight_S, None, None, None


def _stretches(y_SD: Tensor) -> Iterator[slice]:
    """Of the slots: on a processor as many as stay in its cache while they are widened and weighted."""
    num_slots, width = y_SD.shape
    size = max(1, STRETCH_ELEMENTS // max(1, width)) if y_SD.device.type == "cpu" else max(1, num_slots)
    return (slice(first, first + size) for first in range(0, num_slots, size))
