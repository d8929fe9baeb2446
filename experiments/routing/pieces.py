"""The experts' feed-forward a few experts at a time, so that what lies between its two products stays in the cache.

Forward keeps the first product and not its activation, which backward computes again: a third less memory, and on a
processor less time than writing it out, since fresh memory is expensive there (docs/benchmarks). Each expert's numbers
are those of the plain form, `experts.plain_feed_forward`, which is what this is held against.

Legend: E experts, P slots of an expert, D width, F hidden width; `w_in_EDF` and `hidden_EPF` hold 2 F columns with
SwiGLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Activation = Literal["gelu", "swiglu"]

PIECE_BYTES = 4 * 2**20
"""Of `hidden_EPF` in a piece, or one expert where that is more."""


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """SwiGLU over the two halves of the last axis (gate, up), or GELU.

    The papers do not say which GELU; the exact one takes a third of the time of the tanh form on a CPU.
    """
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.gelu(hidden)


def feed_forward_in_pieces(x_EPD: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, activation: Activation) -> Tensor:
    """Each expert over its own slots: [E, P, D] to the same. All in one type; gradients of the first order only."""
    if torch.is_grad_enabled():
        out: Tensor = _InPieces.apply(x_EPD, w_in_EDF, w_out_EFD, activation)  # type: ignore[no-untyped-call]
        return out
    y_EPD = torch.empty_like(x_EPD)
    for piece in _pieces(x_EPD, w_in_EDF):
        acted = activate(torch.bmm(x_EPD[piece], w_in_EDF[piece]), activation)
        torch.bmm(acted, w_out_EFD[piece], out=y_EPD[piece])
    return y_EPD


def _pieces(x_EPD: Tensor, w_in_EDF: Tensor) -> Iterator[slice]:
    """Of the experts."""
    num_experts, num_slots, _ = x_EPD.shape
    expert_bytes = num_slots * w_in_EDF.shape[2] * x_EPD.element_size()
    size = max(1, PIECE_BYTES // max(1, expert_bytes))
    return (slice(first, min(first + size, num_experts)) for first in range(0, num_experts, size))


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_EPD: Tensor, w_in_EDF: Tensor, w_out_EFD: Tensor, activation: Activation) -> Tensor:
        hidden_EPF = x_EPD.new_empty(*x_EPD.shape[:2], w_in_EDF.shape[2])
        y_EPD = torch.empty_like(x_EPD)
        for piece in _pieces(x_EPD, w_in_EDF):
            hidden = torch.bmm(x_EPD[piece], w_in_EDF[piece], out=hidden_EPF[piece])
            torch.bmm(activate(hidden, activation), w_out_EFD[piece], out=y_EPD[piece])
        ctx.save_for_backward(x_EPD, w_in_EDF, w_out_EFD, hidden_EPF)
        ctx.activation = activation  # type: ignore[attr-defined]
        return y_EPD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_EPD, w_in_EDF, w_out_EFD, hidden_EPF = ctx.saved_tensors
        of_y_EPD = gradients[0].contiguous()
        of_x_EPD, of_w_in_EDF, of_w_out_EFD = (torch.empty_like(each) for each in (x_EPD, w_in_EDF, w_out_EFD))
        for piece in _pieces(x_EPD, w_in_EDF):
            of_y, hidden = of_y_EPD[piece], hidden_EPF[piece]
            torch.bmm(activate(hidden, ctx.activation).mT, of_y, out=of_w_out_EFD[piece])
            of_hidden = _activation_gradient(torch.bmm(of_y, w_out_EFD[piece].mT), hidden, ctx.activation)
            torch.bmm(x_EPD[piece].mT, of_hidden, out=of_w_in_EDF[piece])
            torch.bmm(of_hidden, w_in_EDF[piece].mT, out=of_x_EPD[piece])
        return of_x_EPD, of_w_in_EDF, of_w_out_EFD, None


def _activation_gradient(of_out: Tensor, hidden: Tensor, activation: Activation) -> Tensor:
    """The gradient of `hidden` from that of what `activate` made of it."""
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        of_gate = torch.ops.aten.silu_backward(of_out * up, gate)
        return torch.cat((of_gate, of_out * F.silu(gate)), dim=-1)
    out: Tensor = torch.ops.aten.gelu_backward(of_out, hidden)
    return out
