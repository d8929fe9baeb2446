"""Triton kernels of the experts' products that compute the activation inside (`train.implementation=fused`).

GELU and SwiGLU between two products are limited by memory bandwidth: by themselves they read the hidden layer that a
product has just written, and in the backward pass its gradient too. Here the program that computes a tile of a product
applies the activation while the tile is in registers. The forward pass then moves two thirds of the bytes, and the
backward pass three fifths. Whether that gains more than a product in Triton loses against one of the vendor's library
depends on the device, so that these kernels run only where the user asks for them.

Both kernels multiply `left_ERD` [E, R, D] by the transpose of `right_EPD` [E, P, D] with sums in float32. A tile is
computed by one program in a fixed order, so results are reproducible.

The width is a constant of the compiled kernel. All layers of a model share it, so that each kernel is compiled once.

Legend: E experts, P slots of an expert, D width, F hidden width, R rows: F, and 2 F in the forward pass with SwiGLU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from experiments.layers.routed_kernels import gelu, silu, store_activation_and_gradient

TILES_TOGETHER = 8
"""Programs that follow each other share the factors of so many rows of tiles, which stay in the second-level cache."""


def hidden_layer(w_in_ERD: Tensor, x_EPD: Tensor, b_in_ER: Tensor | None, hidden_ERP: Tensor, gated: bool) -> Tensor:
    """Writes the first product, plus the bias if given, to `hidden_ERP`, and returns its activation, [E, F, P]."""
    num_experts, rows, num_slots = hidden_ERP.shape
    acted_EFP = hidden_ERP.new_empty(num_experts, rows // 2 if gated else rows, num_slots)
    x_EPD, has_bias = x_EPD.contiguous(), b_in_ER is not None
    bias = w_in_ERD if b_in_ER is None else b_in_ER.contiguous()
    if acted_EFP.numel():
        grid, tile = _grid(acted_EFP, halved=gated)
        _hidden_layer[grid](
            w_in_ERD, x_EPD, bias, hidden_ERP, acted_EFP, acted_EFP.shape[1], num_slots, x_EPD.shape[2], gated,
            has_bias, *tile, TILES_TOGETHER, num_warps=8,
        )  # fmt: skip
    return acted_EFP


def hidden_gradient(
    w_out_EFD: Tensor, grad_y_EPD: Tensor, hidden_ERP: Tensor, grad_hidden_ERP: Tensor, gated: bool
) -> Tensor:
    """Writes the gradient of the hidden layer to `grad_hidden_ERP`, and returns its activation again, [E, F, P].

    `grad_y_EPD` is the gradient of the experts' results. The gradient of the activation, which is the product of both,
    is never in memory.
    """
    acted_EFP = hidden_ERP.new_empty(w_out_EFD.shape[0], w_out_EFD.shape[1], grad_y_EPD.shape[1])
    if acted_EFP.numel():
        grid, tile = _grid(acted_EFP, halved=False)
        _hidden_gradient[grid](
            w_out_EFD, grad_y_EPD, hidden_ERP, acted_EFP, grad_hidden_ERP, acted_EFP.shape[1], acted_EFP.shape[2],
            grad_y_EPD.shape[2], gated, *tile, TILES_TOGETHER, num_warps=8,
        )  # fmt: skip
    return acted_EFP


def _grid(acted_EFP: Tensor, halved: bool) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Returns the grid, and the size of a tile along F, P and D; `halved` where a program has two running sums."""
    rows, slots, inner = (128, 128, 64) if acted_EFP.element_size() == 2 else (64, 64, 32)
    rows //= 2 if halved else 1
    num_experts, num_hidden, num_slots = acted_EFP.shape
    return (triton.cdiv(num_hidden, rows) * triton.cdiv(num_slots, slots), num_experts), (rows, slots, inner)


@triton.jit
def _tile(num_rows, num_slots, ROWS: tl.constexpr, SLOTS: tl.constexpr, TOGETHER: tl.constexpr):
    """Returns the rows and slots of this program's tile.

    Programs run about in the order of their numbers. They go down a band of TOGETHER rows of tiles before they go on to
    the next slots, so that programs that run at the same time read the same rows and slots.
    """
    tile = tl.program_id(0)
    high, wide = tl.cdiv(num_rows, ROWS), tl.cdiv(num_slots, SLOTS)
    first = tile // (TOGETHER * wide) * TOGETHER
    height = min(high - first, TOGETHER)
    row = first + tile % (TOGETHER * wide) % height
    slot = tile % (TOGETHER * wide) // height
    return row * ROWS + tl.arange(0, ROWS), slot * SLOTS + tl.arange(0, SLOTS)


@triton.jit
def _factor(of_expert, lines, num_lines, columns, width):
    """Loads a part of a factor, [lines, columns]; what lies outside is 0, which adds nothing to a product."""
    inside = (lines[:, None] < num_lines) & (columns[None, :] < width)
    return tl.load(of_expert + lines[:, None].to(tl.int64) * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _hidden_layer(
    left, right, bias, hidden, acted, num_rows, num_slots, WIDTH: tl.constexpr, GATED: tl.constexpr,
    BIASED: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, INNER: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """One program computes a tile of the activation, and the tile of the hidden layer that it comes from.

    With SwiGLU these are two tiles, of gates and of ups, which have the second factor in common.
    """
    expert = tl.program_id(1).to(tl.int64)
    rows, slots = _tile(num_rows, num_slots, ROWS, SLOTS, TOGETHER)
    gates_of = left + expert * (2 if GATED else 1) * num_rows * WIDTH
    right += expert * num_slots * WIDTH
    total = tl.zeros((ROWS, SLOTS), dtype=tl.float32)
    if GATED:
        total_up = tl.zeros((ROWS, SLOTS), dtype=tl.float32)
    for start in range(0, WIDTH, INNER):
        columns = start + tl.arange(0, INNER)
        x = tl.trans(_factor(right, slots, num_slots, columns, WIDTH))
        total = tl.dot(_factor(gates_of, rows, num_rows, columns, WIDTH), x, total, input_precision="ieee")
        if GATED:
            ups = _factor(gates_of + num_rows * WIDTH, rows, num_rows, columns, WIDTH)
            total_up = tl.dot(ups, x, total_up, input_precision="ieee")
    if BIASED:
        of_rows = bias + expert * (2 if GATED else 1) * num_rows + rows
        total += tl.load(of_rows, mask=rows < num_rows, other=0.0).to(tl.float32)[:, None]
        if GATED:
            total_up += tl.load(of_rows + num_rows, mask=rows < num_rows, other=0.0).to(tl.float32)[:, None]
    # The activation is that of the rounded hidden layer, from which the backward pass computes it again.
    kind = hidden.dtype.element_ty
    inside = (rows[:, None] < num_rows) & (slots[None, :] < num_slots)
    place = rows[:, None].to(tl.int64) * num_slots + slots[None, :]
    hidden += expert * (2 if GATED else 1) * num_rows * num_slots
    tl.store(hidden + place, total.to(kind), mask=inside)
    x = total.to(kind).to(tl.float32)
    if GATED:
        tl.store(hidden + num_rows * num_slots + place, total_up.to(kind), mask=inside)
        opened, _ = silu(x)
        out = opened * total_up.to(kind).to(tl.float32)
    else:
        out, _ = gelu(x)
    tl.store(acted + expert * num_rows * num_slots + place, out.to(kind), mask=inside)


@triton.jit
def _hidden_gradient(
    left, right, hidden, acted, grad_hidden, num_rows, num_slots, WIDTH: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, INNER: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """One program computes a tile of the activation's gradient, and from it and the hidden layer both results."""
    expert = tl.program_id(1).to(tl.int64)
    rows, slots = _tile(num_rows, num_slots, ROWS, SLOTS, TOGETHER)
    left += expert * num_rows * WIDTH
    right += expert * num_slots * WIDTH
    gradient = tl.zeros((ROWS, SLOTS), dtype=tl.float32)
    for start in range(0, WIDTH, INNER):
        columns = start + tl.arange(0, INNER)
        grad_y = tl.trans(_factor(right, slots, num_slots, columns, WIDTH))
        weights = _factor(left, rows, num_rows, columns, WIDTH)
        gradient = tl.dot(weights, grad_y, gradient, input_precision="ieee")
    inside = (rows[:, None] < num_rows) & (slots[None, :] < num_slots)
    place = rows[:, None].to(tl.int64) * num_slots + slots[None, :]
    size = num_rows * num_slots
    store_activation_and_gradient(hidden, gradient, acted, grad_hidden, expert, place, inside, size, GATED)
