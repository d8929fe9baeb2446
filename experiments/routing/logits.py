"""The logits of a router: what it reads (`routing.input`) and the form in which logits follow (`routing.form`).

Logits are float32 in every precision, because rounding them to 16 bits would change which experts are chosen.

- input `modulated`: the token that the experts process, LN(x) (1 + scale) + shift. `plain_time`: [RMSNorm(time); LN(x)]
  without modulation, whose norm does not follow t (Nucleus-Image, arXiv 2604.12163). `time`: SiLU(time), one decision
  for all tokens of an image (Switch-DiT, arXiv 2403.09176). `time_label`: [SiLU(time); mean of caption features].
- form `linear`: z W. `mlp`: GELU(z V) W (Expert Race, arXiv 2503.16057). `cosine`: the cosine of z and each column of
  W, the prototype of an expert (ProMoE, arXiv 2510.24711).

Legend: as in `contract.py`, with I values that the router reads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from experiments.accelerated import has_kernels
from experiments.routing.contract import RoutingContext

NORM_EPSILON = 1e-6
"""The epsilon of the norms of the router's input, as in the blocks."""
LEAST_LENGTH = 1e-12
"""The least length of a token that its cosines are divided by, as in `torch.nn.functional.normalize`."""


def router_input(kind: str, x_BTD: Tensor, context: RoutingContext) -> Tensor:
    """Returns what the router reads of each token, [B, T, I], or of each image, [B, 1, I].

    Whatever is computed here is float32, since a norm that is rounded to 16 bits would change choices too.
    """
    if kind == "modulated":
        return x_BTD
    if kind == "plain_time":
        token_BTD = F.layer_norm(context.residual_BTD.float(), x_BTD.shape[-1:], eps=NORM_EPSILON)
        time_BD = F.rms_norm(context.time_BD.float(), x_BTD.shape[-1:], eps=NORM_EPSILON)
        return torch.cat((time_BD.unsqueeze(1).expand_as(token_BTD), token_BTD), dim=-1)
    time_B1D = F.silu(context.time_BD.float()).unsqueeze(1)
    if kind == "time":
        return time_B1D
    assert context.caption_BD is not None, "routing.input=time_label reads the caption"
    return torch.cat((time_B1D, context.caption_BD.float().unsqueeze(1)), dim=-1)


def form_logits(form: str, z: Tensor, weight_IE: Tensor, hidden_II: Tensor | None, fast: bool) -> Tensor:
    """Returns logits in float32, [..., E], whatever the precision of `z` [..., I] and of the surrounding autocast."""
    with torch.autocast(z.device.type, enabled=False):
        if form == "cosine":
            # The division comes after the product, which has fewer columns than z.
            length = z.float().norm(dim=-1, keepdim=True).clamp_min(LEAST_LENGTH)
            cosine: Tensor = z.float() @ F.normalize(weight_IE.float(), dim=0) / length
            return cosine
        if form == "mlp":
            assert hidden_II is not None
            return F.gelu(z.float() @ hidden_II.float()) @ weight_IE.float()
        if fast and has_kernels(z) and z.dtype == weight_IE.dtype != torch.float32:
            flat_NI = z.flatten(0, -2)
            logits_NE: Tensor = _NarrowLogits.apply(flat_NI, weight_IE)  # type: ignore[no-untyped-call]
            return logits_NE.view(*z.shape[:-1], -1)
        return z.float() @ weight_IE.float()


class _NarrowLogits(torch.autograd.Function):
    """Computes float32 logits from 16-bit inputs and weights without float32 copies of either.

    Routing needs float32 logits, because rounding them to 16 bits would change which experts are chosen. A float32
    matmul would need a float32 copy of all tokens [N, D] and could not use the 16-bit matrix units. The forward pass
    needs neither: products of 16-bit numbers are exact in float32, where they are also summed.

    The gradient of the logits is float32 too, and rounding it to bfloat16 would leave it 8 significant bits. The
    backward pass therefore splits it into a 16-bit value and a 16-bit remainder, and multiplies both with 16-bit
    factors and float32 sums. Together they carry about 16 significant bits, close to what a float32 matmul would give.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_ND: Tensor, weight_DE: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_DE)
        return _product(x_ND, weight_DE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, weight_DE = ctx.saved_tensors
        # The subtraction is exact in float32. Value and remainder stand side by side, [N, 2 E], so that one matmul
        # takes both. The products of the two halves are added in float32 before the result is rounded.
        first_NE = gradients[0].to(x_ND.dtype)
        parts = torch.cat((first_NE, (gradients[0] - first_NE).to(x_ND.dtype)), dim=1)
        grad_first_DE, grad_rest_DE = _product(x_ND.T, parts).chunk(2, dim=1)
        return parts @ weight_DE.repeat(1, 2).T, (grad_first_DE + grad_rest_DE).to(weight_DE.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Returns the matrix product of 16-bit factors in float32."""
    # Only CUDA has a matmul with 16-bit factors and a float32 result. Elsewhere the factors are widened first.
    if a.device.type == "cuda" and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def affinity(logits: Tensor, gating: str | None, dim: int = -1) -> Tensor:
    """Returns token-expert affinities from logits: softmax over experts (`dim`), sigmoid, or the logit itself."""
    if gating == "sigmoid":
        return logits.sigmoid()
    if gating == "identity":
        return logits
    return logits.softmax(dim=dim)
