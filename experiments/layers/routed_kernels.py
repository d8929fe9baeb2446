"""Triton kernels of the routed layer: the sum over a token's slots, the activation, and the gradients of both.

All of these operations are limited by memory bandwidth. Each kernel therefore reads its inputs once, computes in
float32 in registers and writes its results once, where plain operations would write every intermediate to memory.
Within a program the threads handle neighbouring elements of a row, so loads and stores coalesce. Every output element
is written by one program, and its sum runs in a fixed order, so results are reproducible. Tests compare the kernels
with the plain operations in `dispatch.py` and `pieces.py`.

Legend: N tokens, D width, S slots of all experts, E experts, F hidden width, P slots of an expert.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1024
"""The number of consecutive elements that one program of the elementwise kernels computes, 8 for each thread."""
SUMMED = 512
"""Elements of a row for each warp. A program waits for one index after another, so more warps would only wait too."""


def sum_rows(rows_SD: Tensor, index: Tensor, first_N: Tensor, weight_S: Tensor | None = None) -> Tensor:
    """Returns for each n the sum of the rows `index[first_N[n] : first_N[n + 1]]`, each times its `weight_S` if given.

    The result is [N, D] in the type of `rows_SD`, summed in float32.
    """
    num_tokens, width = first_N.shape[0], rows_SD.shape[1]
    rows_SD = rows_SD.contiguous()
    out_ND = rows_SD.new_empty(num_tokens, width)
    weighted = weight_S is not None
    weight = weight_S.contiguous() if weight_S is not None else rows_SD
    if num_tokens and width:
        block, warps = row_block(width, SUMMED)
        _sum_rows[(num_tokens,)](
            rows_SD, index, first_N, weight, out_ND, num_tokens, index.shape[0], width, weighted, block,
            num_warps=warps,
        )  # fmt: skip
    return out_ND


def combine_gradients(grad_out_ND: Tensor, token_S: Tensor, y_SD: Tensor, weight_S: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the weighted sum with respect to its rows, [S, D], and its weights, [S]."""
    num_slots, width = y_SD.shape
    grad_y_SD, grad_weight_S = torch.empty_like(y_SD), torch.empty_like(weight_S)
    if num_slots:
        block, warps = row_block(width, SUMMED)
        _combine_gradients[(num_slots,)](
            grad_out_ND.contiguous(), token_S, y_SD, weight_S.contiguous(), grad_y_SD, grad_weight_S, width, block,
            num_warps=warps,
        )  # fmt: skip
    return grad_y_SD, grad_weight_S


def activation(hidden_EFP: Tensor, gated: bool) -> Tensor:
    """Applies the activation to `hidden_EFP`, contiguous: SwiGLU of gate and up along F if `gated`, otherwise GELU."""
    num_experts, rows, num_slots = hidden_EFP.shape
    acted_EFP = hidden_EFP.new_empty(num_experts, rows // 2 if gated else rows, num_slots)
    size = acted_EFP[0].numel() if num_experts else 0
    if size:
        _activation[(triton.cdiv(size, ELEMENTS), num_experts)](
            hidden_EFP, acted_EFP, size, gated, ELEMENTS, num_warps=4
        )
    return acted_EFP


def activation_with_gradient(
    hidden_EFP: Tensor, grad_acted_EFP: Tensor, grad_hidden_EFP: Tensor, gated: bool
) -> Tensor:
    """Returns the activation of `hidden_EFP` and writes the gradient of `hidden_EFP` to `grad_hidden_EFP`.

    `grad_acted_EFP` is the gradient of the activation. With GELU `grad_hidden_EFP` may be the same tensor, since a
    program reads each element before it overwrites it. All tensors are contiguous.
    """
    num_experts, size = hidden_EFP.shape[0], grad_acted_EFP[0].numel() if grad_acted_EFP.numel() else 0
    acted_EFP = torch.empty_like(grad_acted_EFP)
    if size:
        _activation_with_gradient[(triton.cdiv(size, ELEMENTS), num_experts)](
            hidden_EFP, grad_acted_EFP, acted_EFP, grad_hidden_EFP, size, gated, ELEMENTS, num_warps=4
        )
    return acted_EFP


def row_block(width: int, numbers_of_a_warp: int) -> tuple[int, int]:
    """Returns the size of a block that holds a whole row, a power of two, and the number of warps that share it."""
    block = triton.next_power_of_2(width)
    return block, max(1, min(8, block // numbers_of_a_warp))


@triton.jit
def _sum_rows(
    rows, index, first, weight, out, num_tokens, num_slots, width, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    """One program sums the rows of one token, one whole row of `width` elements after the other.

    The rows of a token lie anywhere in memory, but each of them is contiguous, so its load coalesces. The running sum
    stays in float32 registers and is rounded once. As one program adds all rows of its token in the order of `index`,
    no atomic additions are needed, whose order would change between runs.
    """
    # Offsets are int64, because slots times width may exceed 2^31.
    token = tl.program_id(0).to(tl.int64)
    # A block is a power of two. The mask keeps columns beyond `width` from reading and writing the next row.
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    # The rows of a token end where those of the next token begin. The last token has no next one.
    begin = tl.load(first + token)
    end = tl.load(first + token + 1, mask=token + 1 < num_tokens, other=num_slots).to(begin.dtype)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    # The number of rows is known only on the device: a token has none, one or many slots.
    place = begin
    while place < end:
        slot = tl.load(index + place).to(tl.int64)
        row = tl.load(rows + slot * width + columns, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            # Weights are stored by slot and read through the same index, so no sorted copy of them is needed.
            row = row * tl.load(weight + slot).to(tl.float32)
        total += row
        place += 1
    tl.store(out + token * width + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _combine_gradients(grad_out, token, y, weight, grad_y, grad_weight, width, BLOCK: tl.constexpr):
    """One program computes the gradients of one slot: its row of `grad_y` and its element of `grad_weight`.

    It holds one whole row in registers, so that the gradient of the token's row is read once and serves both results.
    Programs are numbered by slot, so `y` and `grad_y` are read and written in memory order. A slot belongs to one
    token, so no two programs write to the same place.
    """
    slot = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    row = tl.load(token + slot).to(tl.int64)
    grad_row = tl.load(grad_out + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    y_row = tl.load(y + slot * width + columns, mask=inside, other=0.0).to(tl.float32)
    # The output is the sum of weight times y, so the gradient of the weight is the dot product of y and the gradient.
    tl.store(grad_weight + slot, tl.sum(grad_row * y_row, axis=0).to(grad_weight.dtype.element_ty))
    grad_row = grad_row * tl.load(weight + slot).to(tl.float32)
    tl.store(grad_y + slot * width + columns, grad_row.to(grad_y.dtype.element_ty), mask=inside)


@triton.jit
def gelu(x):
    """Returns the exact GELU, x times the normal distribution function, and its derivative; x is in float32."""
    share = 0.5 * (1 + tl.erf(x * 0.7071067811865476))  # the factor is 1 / sqrt(2)
    # The derivative is Phi(x) + x phi(x) with the normal density phi, whose factor is 1 / sqrt(2 pi).
    return x * share, share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def silu(x):
    """Returns x times its sigmoid s, and the derivative, s + x s (1 - s); x is in float32."""
    # For x below -88 the exponential overflows to infinity, and the sigmoid is 0, which is its limit.
    share = 1 / (1 + tl.exp(-x))
    return x * share, share + x * share * (1 - share)


@triton.jit
def _activation(hidden, acted, size, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """One program computes BLOCK consecutive elements of one expert's [F, P] output, in memory order.

    The grid is [blocks of an expert, experts]. `size` is F P. With SwiGLU an expert's gates fill the first `size`
    elements of its part of `hidden` and its ups the next `size`. A block therefore must not cross experts: the distance
    from an output element to its gate differs between them.
    """
    expert = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    if GATED:
        other = 2 * expert * size + place
        gate = tl.load(hidden + other, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(hidden + other + size, mask=inside, other=0.0).to(tl.float32)
        opened, _ = silu(gate)
        out = opened * up
    else:
        x = tl.load(hidden + expert * size + place, mask=inside, other=0.0).to(tl.float32)
        out, _ = gelu(x)
    tl.store(acted + expert * size + place, out.to(acted.dtype.element_ty), mask=inside)


@triton.jit
def _activation_with_gradient(hidden, grad_acted, acted, grad_hidden, size, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """One program recomputes BLOCK consecutive elements of one expert's activation and their gradient.

    Grid and memory layout are those of `_activation`. The backward pass needs the activation for the gradient of the
    second matrix; it is recomputed here, because `hidden` is read anyway and storing it would take F P more numbers.
    """
    expert = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    # It is loaded before anything is stored, because `grad_hidden` may be the same memory as `grad_acted`.
    gradient = tl.load(grad_acted + expert * size + place, mask=inside, other=0.0).to(tl.float32)
    store_activation_and_gradient(hidden, gradient, acted, grad_hidden, expert, place, inside, size, GATED)


@triton.jit
def store_activation_and_gradient(
    hidden, gradient, acted, grad_hidden, expert, place, inside, size, GATED: tl.constexpr
):
    """Stores the activation of a block of one expert's hidden layer, and from its `gradient` that of the hidden layer.

    `place` says where the elements of the block lie among the `size` of the expert's activation.
    """
    one, other = expert * size + place, 2 * expert * size + place
    kind = acted.dtype.element_ty
    if GATED:
        gate = tl.load(hidden + other, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(hidden + other + size, mask=inside, other=0.0).to(tl.float32)
        opened, slope = silu(gate)
        tl.store(acted + one, (opened * up).to(kind), mask=inside)
        tl.store(grad_hidden + other, (gradient * up * slope).to(kind), mask=inside)
        tl.store(grad_hidden + other + size, (gradient * opened).to(kind), mask=inside)
    else:
        x = tl.load(hidden + one, mask=inside, other=0.0).to(tl.float32)
        out, slope = gelu(x)
        tl.store(acted + one, out.to(kind), mask=inside)
        tl.store(grad_hidden + one, (gradient * slope).to(kind), mask=inside)
