"""Triton kernels of a block's elementwise parts: adaptive layer norm, layer norm of heads, and the gated residual.

The forward and the backward kernel each read and write a token once. Threads of a program handle neighbouring elements
of a row, so loads and stores coalesce, and all arithmetic is float32. Gradients that are sums over tokens or heads
(those of shift, scale and gate, and of the norm's weights) are summed in two steps in float32: each program writes the
sum over its own stretch of tokens, and torch adds the stretches. This order is fixed, unlike that of atomic additions,
so results are reproducible. Tests compare the kernels with the plain operations in `attention.py`.

Legend: B images, T tokens, D width, H heads, K size of a head, R rows (B T H), J stretches of tokens or rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from experiments.layers.routed_kernels import row_block

TOKENS = 16
"""The number of tokens of one image that one program of a backward kernel sums over."""
NORMED = 256
"""Elements of a row for each warp."""
HEAD_ROWS, HEAD_LOOPS = 32, 16
"""A program of the head norm takes this many rows at once; in the backward pass it does so this many times."""


def modulate(x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, eps: float) -> Tensor:
    """Computes the layer norm without weights of `x_BTD`, times 1 + scale, plus shift."""
    out_BTD: Tensor = _Modulate.apply(x_BTD, shift_B1D, scale_B1D, eps)
    return out_BTD


def gated_residual(x_BTD: Tensor, gate_B1D: Tensor, y_BTD: Tensor) -> Tensor:
    """Computes x + gate y."""
    out_BTD: Tensor = _GatedResidual.apply(x_BTD, gate_B1D, y_BTD)
    return out_BTD


def norm_heads(x_BTHK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
    """Computes the weighted layer norm of each head, contiguous; `x_BTHK` may be a slice of a wider tensor along H."""
    out_BTHK: Tensor = _NormHeads.apply(x_BTHK, weight_K, eps)
    return out_BTHK


class _Modulate(torch.autograd.Function):
    """Adaptive layer norm, which saves its input and recomputes mean and variance in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BTD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, eps: float) -> Tensor:
        x_BTD = x_BTD.contiguous()
        num_images, num_tokens, width = x_BTD.shape
        out_BTD = torch.empty_like(x_BTD)
        block, warps = row_block(width, NORMED)
        _modulate[(num_images * num_tokens,)](
            x_BTD, shift_B1D, scale_B1D, out_BTD, num_tokens, width, shift_B1D.stride(0), scale_B1D.stride(0), eps,
            block, num_warps=warps,
        )  # fmt: skip
        ctx.save_for_backward(x_BTD, scale_B1D)
        ctx.eps = eps  # type: ignore[attr-defined]
        return out_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, scale_B1D = ctx.saved_tensors
        num_images, num_tokens, width = x_BTD.shape
        grad_x_BTD, stretches = torch.empty_like(x_BTD), triton.cdiv(num_tokens, TOKENS)
        sums_2BJD = x_BTD.new_empty(2, num_images, stretches, width, dtype=torch.float32)
        block, warps = row_block(width, NORMED)
        _modulate_gradients[(num_images * stretches,)](
            gradients[0].contiguous(), x_BTD, scale_B1D, grad_x_BTD, sums_2BJD[0], sums_2BJD[1], num_tokens, stretches,
            width, scale_B1D.stride(0), ctx.eps, TOKENS, block, num_warps=warps,
        )  # fmt: skip
        grad_shift_B1D, grad_scale_B1D = sums_2BJD.sum(dim=2, keepdim=True).to(scale_B1D.dtype)
        return grad_x_BTD, grad_shift_B1D, grad_scale_B1D, None


class _GatedResidual(torch.autograd.Function):
    """The gated residual, whose gradient of `x_BTD` is the incoming gradient itself."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BTD: Tensor, gate_B1D: Tensor, y_BTD: Tensor) -> Tensor:
        x_BTD, y_BTD = x_BTD.contiguous(), y_BTD.contiguous()
        num_images, num_tokens, width = x_BTD.shape
        out_BTD = torch.empty_like(x_BTD)
        block, warps = row_block(width, NORMED)
        _gated_residual[(num_images * num_tokens,)](
            x_BTD, gate_B1D, y_BTD, out_BTD, num_tokens, width, gate_B1D.stride(0), block, num_warps=warps
        )
        ctx.save_for_backward(gate_B1D, y_BTD)
        return out_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate_B1D, y_BTD = ctx.saved_tensors
        grad_out_BTD = gradients[0].contiguous()
        num_images, num_tokens, width = y_BTD.shape
        grad_y_BTD, stretches = torch.empty_like(y_BTD), triton.cdiv(num_tokens, TOKENS)
        sums_BJD = y_BTD.new_empty(num_images, stretches, width, dtype=torch.float32)
        block, warps = row_block(width, NORMED)
        _gated_residual_gradients[(num_images * stretches,)](
            grad_out_BTD, gate_B1D, y_BTD, grad_y_BTD, sums_BJD, num_tokens, stretches, width, gate_B1D.stride(0),
            TOKENS, block, num_warps=warps,
        )  # fmt: skip
        return grad_out_BTD, sums_BJD.sum(dim=1, keepdim=True).to(gate_B1D.dtype), grad_y_BTD


class _NormHeads(torch.autograd.Function):
    """Layer norm of heads, which saves its input and recomputes mean and variance in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BTHK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
        x_BTHK = _heads_in_order(x_BTHK)
        out_BTHK = x_BTHK.new_empty(x_BTHK.shape)
        heads, size = x_BTHK.shape[2:]
        num_rows = x_BTHK.numel() // size
        _norm_heads[(triton.cdiv(num_rows, HEAD_ROWS),)](
            x_BTHK, weight_K, out_BTHK, num_rows, heads, x_BTHK.stride(1), size, eps, HEAD_ROWS,
            triton.next_power_of_2(size), num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(x_BTHK, weight_K)
        ctx.eps = eps  # type: ignore[attr-defined]
        return out_BTHK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHK, weight_K = ctx.saved_tensors
        grad_out_BTHK, grad_x_BTHK = _heads_in_order(gradients[0]), x_BTHK.new_empty(x_BTHK.shape)
        heads, size = x_BTHK.shape[2:]
        num_rows = x_BTHK.numel() // size
        num_programs = triton.cdiv(num_rows, HEAD_ROWS * HEAD_LOOPS)
        sums_JK = x_BTHK.new_empty(num_programs, size, dtype=torch.float32)
        _norm_heads_gradients[(num_programs,)](
            grad_out_BTHK, x_BTHK, weight_K, grad_x_BTHK, sums_JK, num_rows, heads, grad_out_BTHK.stride(1),
            x_BTHK.stride(1), size, ctx.eps, HEAD_LOOPS, HEAD_ROWS, triton.next_power_of_2(size), num_warps=4,
        )  # fmt: skip
        return grad_x_BTHK, sums_JK.sum(dim=0).to(weight_K.dtype), None


def _heads_in_order(x_BTHK: Tensor) -> Tensor:
    """Returns `x_BTHK`, copied if need be, so that one stride leads from token to token and heads are contiguous."""
    _, num_tokens, _, size = x_BTHK.shape
    image, token, head, number = x_BTHK.stride()
    in_order = number == 1 and head == size and image == num_tokens * token
    return x_BTHK if in_order else x_BTHK.contiguous()


@triton.jit
def _modulate(x, shift, scale, out, num_tokens, width, shift_stride, scale_stride, eps, BLOCK: tl.constexpr):
    """One program normalises and modulates one token, whose `width` elements it holds in registers.

    Shift and scale have one row per image; these are slices of a wider tensor, so their rows have a stride.
    """
    row = tl.program_id(0).to(tl.int64)
    image = row // num_tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    v = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    # The variance is that of centred values: E[x^2] - E[x]^2 would cancel where the mean is large. Columns beyond
    # `width` would hold minus the mean and enter the variance, so they are set to 0 again.
    v = tl.where(inside, v - tl.sum(v, axis=0) / width, 0.0)
    v = v * tl.rsqrt(tl.sum(v * v, axis=0) / width + eps)
    b = tl.load(shift + image * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(scale + image * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (v * (1 + s) + b).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _modulate_gradients(
    grad_out, x, scale, grad_x, grad_shift, grad_scale, num_tokens, stretches, width, scale_stride, eps,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program goes through TOKENS consecutive tokens of one image, in memory order, a whole row at a time.

    It writes the gradient of each token, and at the end its own float32 partial sums of the gradients of the image's
    shift and scale, which stay in registers meanwhile. Statistics are recomputed from `x`, which is read anyway.
    """
    program = tl.program_id(0).to(tl.int64)
    image, stretch = program // stretches, program % stretches
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    s = 1 + tl.load(scale + image * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    shift_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    scale_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(TOKENS):
        token = stretch * TOKENS + number
        here = (image * num_tokens + token) * width + columns
        there = inside & (token < num_tokens)  # a token beyond the image loads a gradient of 0, and adds 0 to the sums
        v = tl.load(x + here, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grad_out + here, mask=there, other=0.0).to(tl.float32)
        v = tl.where(inside, v - tl.sum(v, axis=0) / width, 0.0)
        scaling = tl.rsqrt(tl.sum(v * v, axis=0) / width + eps)
        v = v * scaling
        shift_sum += g
        scale_sum += g * v
        # Layer norm is blind to shifts and scalings of x, so the gradient loses its mean and its component along v.
        g = g * s
        g = scaling * (g - tl.sum(g, axis=0) / width - v * (tl.sum(g * v, axis=0) / width))
        tl.store(grad_x + here, g.to(grad_x.dtype.element_ty), mask=there)
    tl.store(grad_shift + program * width + columns, shift_sum, mask=inside)
    tl.store(grad_scale + program * width + columns, scale_sum, mask=inside)


@triton.jit
def _gated_residual(x, gate, y, out, num_tokens, width, gate_stride, BLOCK: tl.constexpr):
    """One program computes one token with the gate of its image, in float32."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * width + columns
    g = tl.load(gate + (row // num_tokens) * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    v += g * tl.load(y + here, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + here, v.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_residual_gradients(
    grad_out, gate, y, grad_y, grad_gate, num_tokens, stretches, width, gate_stride,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program goes through TOKENS consecutive tokens of one image, as in `_modulate_gradients`.

    It writes the gradient of `y` for each token, and its partial sum of the gradient of the image's gate.
    """
    program = tl.program_id(0).to(tl.int64)
    image, stretch = program // stretches, program % stretches
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    factor = tl.load(gate + image * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    gate_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(TOKENS):
        token = stretch * TOKENS + number
        here = (image * num_tokens + token) * width + columns
        there = inside & (token < num_tokens)
        g = tl.load(grad_out + here, mask=there, other=0.0).to(tl.float32)
        gate_sum += g * tl.load(y + here, mask=there, other=0.0).to(tl.float32)
        tl.store(grad_y + here, (g * factor).to(grad_y.dtype.element_ty), mask=there)
    tl.store(grad_gate + program * width + columns, gate_sum, mask=inside)


@triton.jit
def _norm_heads(x, weight, out, num_rows, heads, token_stride, size, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """One program normalises ROWS consecutive heads, in memory order, as a block [ROWS, BLOCK] with one head per row.

    One head (64 elements, say) would keep only a part of a warp busy, so a program takes several at once. The heads of
    a token are contiguous, but tokens are `token_stride` apart, as queries and keys may be slices of a wider tensor.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
    here = (rows // heads) * token_stride + (rows % heads) * size
    v = tl.load(x + here[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    v = tl.where(columns[None, :] < size, v - (tl.sum(v, axis=1) / size)[:, None], 0.0)
    v = v * tl.rsqrt(tl.sum(v * v, axis=1) / size + eps)[:, None]
    w = tl.load(weight + columns, mask=columns < size, other=0.0).to(tl.float32)
    tl.store(out + (rows * size)[:, None] + columns[None, :], (v * w[None, :]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_heads_gradients(
    grad_out, x, weight, grad_x, grad_weight, num_rows, heads, grad_out_stride, token_stride, size, eps,
    LOOPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program goes through LOOPS consecutive blocks of ROWS heads, in memory order.

    It writes the gradient of each head, and its float32 partial sum of the gradient of the weights, which all heads
    share. A loop over several blocks keeps the number of partial sums, which torch adds afterwards, small.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    w = tl.load(weight + columns, mask=columns < size, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(LOOPS):
        rows = (program * LOOPS + number) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < size)
        token, head = rows // heads, (rows % heads) * size
        v = tl.load(x + (token * token_stride + head)[:, None] + columns[None, :], mask=inside, other=0.0)
        g = tl.load(grad_out + (token * grad_out_stride + head)[:, None] + columns[None, :], mask=inside, other=0.0)
        v, g = v.to(tl.float32), g.to(tl.float32)
        v = tl.where(columns[None, :] < size, v - (tl.sum(v, axis=1) / size)[:, None], 0.0)
        scaling = tl.rsqrt(tl.sum(v * v, axis=1) / size + eps)
        v = v * scaling[:, None]
        total += tl.sum(g * v, axis=0)
        g = g * w[None, :]
        g = g - (tl.sum(g, axis=1) / size)[:, None] - v * (tl.sum(g * v, axis=1) / size)[:, None]
        grad_row = (g * scaling[:, None]).to(grad_x.dtype.element_ty)
        tl.store(grad_x + (rows * size)[:, None] + columns[None, :], grad_row, mask=inside)
    tl.store(grad_weight + program * size + columns, total, mask=columns < size)
