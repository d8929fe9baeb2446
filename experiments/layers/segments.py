"""The experts' feed-forward where loads differ: each expert runs over its own segment of the slots, without padding.

Slots are sorted by expert. The loop takes one expert after the other and writes outputs and gradients to their place in
tensors whose sizes depend on M alone. Scratch memory is allocated once for the largest segment and shared by all
experts, because loads change with every step and an allocator serves ever-changing sizes badly. As in `pieces.py`, the
forward pass saves the first product but not its activation, and the hidden layer is stored transposed.

Devices of type `cuda` use torch's grouped matmul, which reads the loads on the device. Where it does not apply (other
devices, types other than bfloat16, rows that are not multiples of 16 bytes) the loop over experts does the work.

Legend: M slots of all experts, m slots of one, D width, E experts, F hidden width; `w_in_EFD` and `hidden_Fm` hold 2 F
rows with SwiGLU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import FunctionCtx, once_differentiable

from experiments.layers.pieces import NO_BIASES, Activation, Biases, activate, activate_with_gradient, memory_again

ALIGNED_BYTES = 16
"""A grouped matmul requires that the rows of its factors begin at multiples of this."""


def feed_forward_in_segments(
    x_MD: Tensor,
    slots_E: Tensor,
    w_in_EFD: Tensor,
    w_out_EFD: Tensor,
    activation: Activation,
    biases: Biases = NO_BIASES,
) -> Tensor:
    """Applies the first expert to the first `slots_E[0]` slots, and so on: [M, D] to [M, D].

    All tensors have one type, and the result is differentiable once.
    """
    if takes_grouped_products(x_MD, w_out_EFD):
        return grouped_feed_forward(x_MD, slots_E, w_in_EFD, w_out_EFD, activation, biases)
    sizes = slot_counts(slots_E, len(x_MD))
    if torch.is_grad_enabled():
        out: Tensor = _InSegments.apply(x_MD, w_in_EFD, w_out_EFD, activation, sizes, *biases)  # type: ignore[no-untyped-call]
        return out
    y_MD, (b_in_EF, b_out_ED) = torch.empty_like(x_MD), biases
    for expert, rows in enumerate(_segments(sizes)):
        hidden_mF = _product(_of_expert(b_in_EF, expert), x_MD[rows], w_in_EFD[expert].T)
        _product(_of_expert(b_out_ED, expert), activate(hidden_mF, activation), w_out_EFD[expert], out=y_MD[rows])
    return y_MD


def _product(bias: Tensor | None, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns the product of two matrices, plus `bias`, broadcast, if given."""
    return torch.mm(left, right, out=out) if bias is None else torch.addmm(bias, left, right, out=out)


def _of_expert(bias: Tensor | None, expert: int) -> Tensor | None:
    return None if bias is None else bias[expert]


def plain_segments(
    x_MD: Tensor,
    slots_E: Tensor,
    w_in_EFD: Tensor,
    w_out_EFD: Tensor,
    activation: Activation,
    biases: Biases = NO_BIASES,
) -> Tensor:
    """Computes `feed_forward_in_segments` in plain operations; it is the reference of the tests."""
    parts = torch.split(x_MD, slot_counts(slots_E, len(x_MD)))
    by_expert = ([None] * len(parts) if bias is None else bias.unbind() for bias in biases)
    outs = [
        _product(b_out_D, activate(_product(b_in_F, x_mD, w_in_FD.T), activation), w_out_FD)
        for x_mD, w_in_FD, w_out_FD, b_in_F, b_out_D in zip(parts, w_in_EFD, w_out_EFD, *by_expert, strict=True)
    ]
    return torch.cat(outs)


def slot_counts(slots: Tensor, total: int) -> list[int]:
    """Returns `slots` as a list; on an accelerator this waits for the device.

    Fake tensors (`training/simulation.py`) have no values: for these the `total` is divided evenly.
    """
    if isinstance(slots, FakeTensor):
        even, rest = divmod(total, slots.numel())
        return [even + (place < rest) for place in range(slots.numel())]
    counts: list[int] = slots.tolist()
    return counts


def takes_grouped_products(x_MD: Tensor, w_out_EFD: Tensor) -> bool:
    """Returns whether torch's grouped matmul takes these tensors on their device; without rows it is not asked to."""
    aligned = all(size * x_MD.element_size() % ALIGNED_BYTES == 0 for size in w_out_EFD.shape[1:])
    return x_MD.is_cuda and x_MD.dtype == torch.bfloat16 and aligned and len(x_MD) > 0


def grouped_feed_forward(
    x_MD: Tensor,
    slots_E: Tensor,
    w_in_EFD: Tensor,
    w_out_EFD: Tensor,
    activation: Activation,
    biases: Biases = NO_BIASES,
) -> Tensor:
    """Applies the experts with two grouped matmuls; autograd saves the hidden layer before and after its activation."""
    ends_E, (b_in_EF, b_out_ED) = slots_E.cumsum(0).to(torch.int32), biases
    hidden_MF = F.grouped_mm(x_MD, w_in_EFD.mT, offs=ends_E)
    if b_in_EF is None or b_out_ED is None:
        return F.grouped_mm(activate(hidden_MF, activation), w_out_EFD, offs=ends_E)
    # Torch's grouped matmul takes no bias. The known size spares a wait for the device.
    expert_M = torch.repeat_interleave(slots_E, output_size=len(x_MD))
    acted_MF = activate(_plus_bias(hidden_MF, b_in_EF, expert_M), activation)
    return _plus_bias(F.grouped_mm(acted_MF, w_out_EFD, offs=ends_E), b_out_ED, expert_M)


def _plus_bias(y_MF: Tensor, bias_EF: Tensor, expert_M: Tensor) -> Tensor:
    """Adds to each slot the bias of its expert, so that the gradient of a bias is summed in float32 in a fixed order.

    The gradient of an embedding is such a sum; that of an index would be a sum by atomic additions.
    """
    return (y_MF + F.embedding(expert_M, bias_EF.float())).to(y_MF.dtype)


def _segments(sizes: Sequence[int]) -> Iterator[slice]:
    """Yields the slice of the slots of each expert."""
    return (slice(last - size, last) for size, last in zip(sizes, accumulate(sizes), strict=True))


class _InSegments(torch.autograd.Function):
    """The loop over experts, which saves the hidden layer before its activation, as one flat tensor."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_MD: Tensor, w_in_EFD: Tensor, w_out_EFD: Tensor, activation: Activation, sizes: list[int],
        b_in_EF: Tensor | None, b_out_ED: Tensor | None,
    ) -> Tensor:  # fmt: skip
        num_rows = w_in_EFD.shape[1]
        hidden, y_MD = x_MD.new_empty(len(x_MD) * num_rows), torch.empty_like(x_MD)
        for expert, rows in enumerate(_segments(sizes)):
            b_in_F1 = None if b_in_EF is None else b_in_EF[expert].unsqueeze(1)
            hidden_Fm = _product(b_in_F1, w_in_EFD[expert], x_MD[rows].T, out=_of_segment(hidden, rows, num_rows))
            acted_mF = activate(hidden_Fm, activation, dim=0).T
            _product(_of_expert(b_out_ED, expert), acted_mF, w_out_EFD[expert], out=y_MD[rows])
        ctx.save_for_backward(x_MD, w_in_EFD, w_out_EFD, hidden)
        ctx.activation, ctx.sizes, ctx.has_biases = activation, sizes, b_in_EF is not None  # type: ignore[attr-defined]
        return y_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, w_in_EFD, w_out_EFD, hidden = ctx.saved_tensors
        grad_y_MD = gradients[0].contiguous()
        grad_x_MD, grad_w_in_EFD, grad_w_out_EFD = (torch.empty_like(each) for each in (x_MD, w_in_EFD, w_out_EFD))
        num_rows, num_hidden = w_in_EFD.shape[1], w_out_EFD.shape[1]
        shapes = (w_in_EFD.shape[:2], (len(w_out_EFD), x_MD.shape[1]))
        grad_b_in_EF, grad_b_out_ED = map(x_MD.new_empty, shapes) if ctx.has_biases else (None, None)
        # A view of the right shape is cut out of the scratch memory for every expert.
        memory = memory_again(x_MD, max(ctx.sizes) * num_hidden, ctx.activation)
        for expert, rows in enumerate(_segments(ctx.sizes)):
            size, hidden_Fm = rows.stop - rows.start, _of_segment(hidden, rows, num_rows)
            grad_acted_Fm, acted_Fm, grad_hidden_Fm = (
                each[: size * count].view(count, size)
                for each, count in zip(memory, (num_hidden, num_hidden, num_rows), strict=True)
            )
            torch.mm(w_out_EFD[expert], grad_y_MD[rows].T, out=grad_acted_Fm)
            activate_with_gradient(hidden_Fm, grad_acted_Fm, acted_Fm, grad_hidden_Fm, ctx.activation)
            torch.mm(acted_Fm, grad_y_MD[rows], out=grad_w_out_EFD[expert])
            torch.mm(grad_hidden_Fm, x_MD[rows], out=grad_w_in_EFD[expert])
            torch.mm(grad_hidden_Fm.T, w_in_EFD[expert], out=grad_x_MD[rows])
            if grad_b_in_EF is not None and grad_b_out_ED is not None:
                torch.sum(grad_hidden_Fm, dim=1, out=grad_b_in_EF[expert])
                torch.sum(grad_y_MD[rows], dim=0, out=grad_b_out_ED[expert])
        return grad_x_MD, grad_w_in_EFD, grad_w_out_EFD, None, None, grad_b_in_EF, grad_b_out_ED


def _of_segment(hidden: Tensor, rows: slice, num_rows: int) -> Tensor:
    """Returns the part of the flat hidden layer that belongs to the slots `rows` of one expert, [F, m]."""
    return hidden[rows.start * num_rows : rows.stop * num_rows].view(num_rows, rows.stop - rows.start)
