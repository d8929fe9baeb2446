"""The experts' feed-forward for equal loads, a few experts at a time so that hidden layers stay in the CPU's cache.

The forward pass saves the first product but not its activation, which the backward pass recomputes. This takes a third
less memory, and on a CPU less time than storing it, since first touches of memory are expensive (docs/benchmarks). An
accelerator takes all experts at once. Tests compare the results with the plain form, `experts.plain_feed_forward`.

Where gradients are wanted the hidden layer is stored transposed, [F, P]. Each product of the backward pass then finds
its left factor contiguous in memory, as the 16-bit matmuls of CPUs want it: with 32 experts the six products take 0.8
of the time (docs/benchmarks).

Experts may have biases (`routing.expert_bias`), which are added by the products themselves, without another pass over
memory. Without biases the operations are those of experts that never had any.

Legend: E experts, P slots of an expert, D width, F hidden width; `w_in_EFD`, `hidden_EFP` and the first bias, [E, F],
hold 2 F rows with SwiGLU. The second bias is [E, D].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from experiments.accelerated import has_kernels
from experiments.config.blocks import DenseActivation

Activation = Literal["gelu", "swiglu"]
Biases = tuple[Tensor, Tensor] | tuple[None, None]
"""The biases of the first and of the second matrix of all experts, [E, F] and [E, D], or none."""
NO_BIASES: Biases = (None, None)

PIECE_BYTES = 4 * 2**20
"""The size of the part of `hidden_EFP` in one piece; a piece is one expert where an expert's part is larger."""


def activate(hidden: Tensor, activation: DenseActivation, dim: int = -1) -> Tensor:
    """Applies SwiGLU to the two halves (gate, up) of the axis `dim`, or GELU.

    The papers do not say which GELU. The public code of DiffMoE and ProMoE has the tanh form, which takes three times
    as long as the exact one on a CPU.
    """
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=dim)
        return F.silu(gate) * up
    return F.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none")


def activate_with_gradient(
    hidden: Tensor, grad_acted: Tensor, acted: Tensor, grad_hidden: Tensor, activation: Activation, dim: int = 0
) -> None:
    """Writes the activation of `hidden` to `acted`, and the gradient of `hidden` to `grad_hidden`.

    `grad_acted`, the gradient of `acted`, is overwritten as scratch memory. With GELU `grad_hidden` may be the same
    tensor.
    """
    if activation == "gelu":
        torch.ops.aten.gelu.out(hidden, out=acted)
        torch.ops.aten.gelu_backward.grad_input(grad_acted, hidden, grad_input=grad_hidden)
        return
    (gate, up), (grad_gate, grad_up) = hidden.chunk(2, dim=dim), grad_hidden.chunk(2, dim=dim)
    torch.ops.aten.silu.out(gate, out=acted)
    torch.mul(grad_acted, acted, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad_acted.mul_(up), gate, grad_input=grad_gate)
    acted.mul_(up)


def memory_again(like: Tensor, size: int, activation: Activation) -> tuple[Tensor, Tensor, Tensor]:
    """Allocates flat buffers for `activate_with_gradient`, which all pieces use in turn: fresh memory would cost time.

    They are `grad_acted`, `acted` and `grad_hidden` for at most `size` elements of `acted`.
    """
    grad_acted, acted = like.new_empty(size), like.new_empty(size)
    return grad_acted, acted, like.new_empty(2 * size) if activation == "swiglu" else grad_acted


def feed_forward_in_pieces(
    x_EPD: Tensor,
    w_in_EFD: Tensor,
    w_out_EFD: Tensor,
    activation: Activation,
    biases: Biases = NO_BIASES,
    fused: bool = False,
) -> Tensor:
    """Applies each expert to its own slots: [E, P, D] to [E, P, D], all of one type, differentiable once.

    `fused` computes the activation within the products, by the kernels of `product_kernels.py`, where these run.
    """
    fused = fused and has_kernels(x_EPD)
    if torch.is_grad_enabled():
        out: Tensor = _InPieces.apply(x_EPD, w_in_EFD, w_out_EFD, activation, fused, *biases)  # type: ignore[no-untyped-call]
        return out
    y_EPD = torch.empty_like(x_EPD)
    for piece in _pieces(x_EPD, w_in_EFD):
        b_in_E1F, b_out_E1D = (None if bias is None else bias[piece].unsqueeze(1) for bias in biases)
        acted = activate(products(b_in_E1F, x_EPD[piece], w_in_EFD[piece].mT), activation)
        products(b_out_E1D, acted, w_out_EFD[piece], out=y_EPD[piece])
    return y_EPD


def products(bias: Tensor | None, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns the batched product of `left` and `right`, plus `bias`, broadcast, if given."""
    return torch.bmm(left, right, out=out) if bias is None else torch.baddbmm(bias, left, right, out=out)


def _pieces(x_EPD: Tensor, w_in_EFD: Tensor) -> Iterator[slice]:
    """Returns slices of the experts. An accelerator gets a single one, since few large products are fastest there."""
    num_experts, num_slots, _ = x_EPD.shape
    if x_EPD.device.type != "cpu":
        return iter([slice(0, num_experts)])
    expert_bytes = num_slots * w_in_EFD.shape[1] * x_EPD.element_size()
    # As many experts as threads give each thread products of its own, where otherwise threads wait for each other in
    # every product. A quarter is the most, because the backward pass has the hidden layer of a piece in memory again.
    fewest = max(1, min(torch.get_num_threads(), num_experts // 4))
    size = max(1, PIECE_BYTES // max(1, expert_bytes) // fewest) * fewest
    return (slice(first, min(first + size, num_experts)) for first in range(0, num_experts, size))


class _InPieces(torch.autograd.Function):
    """The feed-forward of all experts, which saves the hidden layer before its activation for the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_EPD: Tensor, w_in_EFD: Tensor, w_out_EFD: Tensor, activation: Activation, fused: bool,
        b_in_EF: Tensor | None, b_out_ED: Tensor | None,
    ) -> Tensor:  # fmt: skip
        hidden_EFP = x_EPD.new_empty(*w_in_EFD.shape[:2], x_EPD.shape[1])
        y_EPD = torch.empty_like(x_EPD)
        for piece in _pieces(x_EPD, w_in_EFD):
            b_out_E1D = None if b_out_ED is None else b_out_ED[piece].unsqueeze(1)
            b_in = None if b_in_EF is None else b_in_EF[piece]
            acted = _hidden_layer(w_in_EFD[piece], x_EPD[piece], b_in, hidden_EFP[piece], activation, fused)
            products(b_out_E1D, acted.mT, w_out_EFD[piece], out=y_EPD[piece])
        ctx.save_for_backward(x_EPD, w_in_EFD, w_out_EFD, hidden_EFP)
        ctx.activation, ctx.fused, ctx.has_biases = activation, fused, b_in_EF is not None  # type: ignore[attr-defined]
        return y_EPD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_EPD, w_in_EFD, w_out_EFD, hidden_EFP = ctx.saved_tensors
        # The gradient may arrive as a view with other strides (an expanded sum, for example), which is copied once
        # here.
        grad_y_EPD = gradients[0].contiguous()
        if has_kernels(hidden_EFP):
            *gradients_of_inputs, grad_hidden_EFP = _with_kernels(
                grad_y_EPD, x_EPD, w_in_EFD, w_out_EFD, hidden_EFP, ctx.activation, ctx.fused
            )
            biased = (grad_hidden_EFP.sum(2), grad_y_EPD.sum(1)) if ctx.has_biases else (None, None)
            return *gradients_of_inputs, None, None, *biased
        grad_b_in_EF, grad_b_out_ED = (
            (x_EPD.new_empty(w_in_EFD.shape[:2]), grad_y_EPD.sum(1)) if ctx.has_biases else (None, None)
        )
        grad_x_EPD, grad_w_in_EFD, grad_w_out_EFD = (torch.empty_like(each) for each in (x_EPD, w_in_EFD, w_out_EFD))
        num_hidden, num_slots = w_out_EFD.shape[1], x_EPD.shape[1]
        pieces = list(_pieces(x_EPD, w_in_EFD))
        largest = max((piece.stop - piece.start for piece in pieces), default=0)
        # The buffers fit the largest piece, and every piece uses their beginning.
        memory = memory_again(x_EPD, largest * num_hidden * num_slots, ctx.activation)
        for piece in pieces:
            grad_y, hidden = grad_y_EPD[piece], hidden_EFP[piece]
            grad_acted, acted, grad_hidden = (
                each[: len(hidden) * count * num_slots].view(len(hidden), count, num_slots)
                for each, count in zip(memory, (num_hidden, num_hidden, hidden.shape[1]), strict=True)
            )
            torch.bmm(w_out_EFD[piece], grad_y.mT, out=grad_acted)
            activate_with_gradient(hidden, grad_acted, acted, grad_hidden, ctx.activation, dim=1)
            torch.bmm(acted, grad_y, out=grad_w_out_EFD[piece])
            torch.bmm(grad_hidden, x_EPD[piece], out=grad_w_in_EFD[piece])
            torch.bmm(grad_hidden.mT, w_in_EFD[piece], out=grad_x_EPD[piece])
            if grad_b_in_EF is not None:
                torch.sum(grad_hidden, dim=2, out=grad_b_in_EF[piece])
        return grad_x_EPD, grad_w_in_EFD, grad_w_out_EFD, None, None, grad_b_in_EF, grad_b_out_ED


def _hidden_layer(
    w_in_EFD: Tensor, x_EPD: Tensor, b_in_EF: Tensor | None, hidden_EFP: Tensor, activation: Activation, fused: bool
) -> Tensor:
    """Writes the transposed hidden layer to `hidden_EFP`, and returns its activation."""
    if fused:
        from experiments.layers import product_kernels

        return product_kernels.hidden_layer(w_in_EFD, x_EPD, b_in_EF, hidden_EFP, activation == "swiglu")
    products(None if b_in_EF is None else b_in_EF.unsqueeze(2), w_in_EFD, x_EPD.mT, out=hidden_EFP)
    if has_kernels(hidden_EFP):
        from experiments.layers import routed_kernels

        return routed_kernels.activation(hidden_EFP, activation == "swiglu")
    return activate(hidden_EFP, activation, dim=1)


def _with_kernels(
    grad_y_EPD: Tensor, x_EPD: Tensor, w_in_EFD: Tensor, w_out_EFD: Tensor, hidden_EFP: Tensor, activation: Activation,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Computes the gradients of `_InPieces` with few large products; the activation and its gradient are one kernel.

    The last one is the gradient of the hidden layer, whose sum over the slots is that of the first bias.
    The activation is recomputed for one half of the experts after the other, so that only half of it is ever in memory.
    """
    from experiments.layers import product_kernels, routed_kernels

    gated = activation == "swiglu"
    grad_acted_EFP = None if fused else torch.bmm(w_out_EFD, grad_y_EPD.mT)
    # Without a gate the gradient of the hidden layer takes the place of that of its activation.
    grad_hidden_EFP = torch.empty_like(hidden_EFP) if gated or grad_acted_EFP is None else grad_acted_EFP
    grad_w_out_EFD = torch.empty_like(w_out_EFD)
    middle = len(hidden_EFP) // 2
    for half in (slice(middle), slice(middle, None)):
        hidden, grad_y, grad_hidden = hidden_EFP[half], grad_y_EPD[half], grad_hidden_EFP[half]
        if grad_acted_EFP is None:
            acted = product_kernels.hidden_gradient(w_out_EFD[half], grad_y, hidden, grad_hidden, gated)
        else:
            acted = routed_kernels.activation_with_gradient(hidden, grad_acted_EFP[half], grad_hidden, gated)
        torch.bmm(acted, grad_y, out=grad_w_out_EFD[half])
        del acted  # or it would still be alive when the other half's activation is allocated
    del grad_acted_EFP
    grad_w_in_EFD = torch.bmm(grad_hidden_EFP, x_EPD)
    return torch.bmm(grad_hidden_EFP.mT, w_in_EFD), grad_w_in_EFD, grad_w_out_EFD, grad_hidden_EFP
