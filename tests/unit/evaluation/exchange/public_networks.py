"""DiT's and DiT-MoE's networks, written from their equations on plain tensors under the names of the public code.

It is the oracle of `test_imported_run.py` and shares nothing with our module. Tensors are drawn, so that nothing is 0.

DiT (arXiv 2212.09748): c = MLP(wave(t)) + table[y]; a block adds g1 attention(LN(x)(1 + s1) + b1), and then
g2 f(LN(x)(1 + s2) + b2), where (b1, s1, g1, b2, s2, g2) = W SiLU(c); the head is a linear map of LN(x)(1 + s) + b.
DiT-MoE (arXiv 2407.11633): f is the sum over the two best experts of softmax(W x)_e SwiGLU_e(x), plus a shared SwiGLU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
KINDS = ("weight", "bias")
WIDTH, DEPTH, HEADS, CHANNELS, PATCH, SIDE, CLASSES, EXPERTS = 48, 2, 4, 4, 2, 8, 10, 4


def positions(width: int, side: int) -> Tensor:
    """[1, T, D] by MAE's rule: the column in the first half, the row in the second; sines before cosines."""
    rows, columns = np.divmod(np.arange(side * side), side)
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    halves = [np.concatenate([f(np.outer(axis, omega)) for f in (np.sin, np.cos)], 1) for axis in (columns, rows)]
    return torch.from_numpy(np.concatenate(halves, 1)).float()[None]


def public_state(num_experts: int = 0, flash: bool = False, seed: int = 0) -> State:
    """The tensors of a small model: dense, or with experts; `flash` names attention as with flash attention."""
    generator = torch.Generator().manual_seed(seed)

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> State:
        drawn = {f"{name}.weight": torch.randn(rows, columns, generator=generator) * columns**-0.5}
        return drawn | ({f"{name}.bias": 0.2 * torch.randn(rows, generator=generator)} if bias else {})

    def swiglu(name: str, hidden: int) -> State:
        sides = linear(f"{name}.gate_proj", hidden, WIDTH, False) | linear(f"{name}.up_proj", hidden, WIDTH, False)
        return sides | linear(f"{name}.down_proj", WIDTH, hidden, False)

    state = linear("x_embedder.proj", WIDTH, CHANNELS * PATCH**2)
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].view(WIDTH, CHANNELS, PATCH, PATCH)
    state |= {"pos_embed": positions(WIDTH, SIDE // PATCH)}
    state |= linear("t_embedder.mlp.0", WIDTH, 256) | linear("t_embedder.mlp.2", WIDTH, WIDTH)
    state |= linear("y_embedder.embedding_table", CLASSES + 1, WIDTH, False)
    qkv, out = ("attn.Wqkv", "attn.out_proj") if flash else ("attn.qkv", "attn.proj")
    for block in (f"blocks.{layer}." for layer in range(DEPTH)):
        state |= linear(f"{block}{qkv}", 3 * WIDTH, WIDTH) | linear(f"{block}{out}", WIDTH, WIDTH)
        for norm in ("q_norm", "k_norm") if flash else ():
            state |= {f"{block}attn.{norm}.{kind}": torch.rand(WIDTH // HEADS, generator=generator) for kind in
                      ("weight", "bias")}  # fmt: skip
        state |= linear(f"{block}adaLN_modulation.1", 6 * WIDTH, WIDTH)
        if not num_experts:
            state |= linear(f"{block}mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{block}mlp.fc2", WIDTH, 4 * WIDTH)
            continue
        state |= linear(f"{block}moe.gate", num_experts, WIDTH, False)
        for expert in range(num_experts):
            state |= swiglu(f"{block}moe.experts.{expert}", 4 * WIDTH)
        state |= swiglu(f"{block}moe.shared_experts", 2 * WIDTH)
    state |= linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    return state | linear("final_layer.linear", PATCH**2 * 2 * CHANNELS, WIDTH)


def public_output(state: State, x: Tensor, t: Tensor, y: Tensor, heads: int = HEADS) -> Tensor:
    """The output [B, 8, H, W] for images, the numbers that are embedded as times, and classes."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def swiglu(name: str, value: Tensor) -> Tensor:
        return linear(
            f"{name}.down_proj", F.silu(linear(f"{name}.gate_proj", value)) * linear(f"{name}.up_proj", value)
        )

    def normed(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    tokens = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=PATCH)
    tokens = tokens.flatten(2).transpose(1, 2) + state["pos_embed"]
    angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    wave = torch.cat([angle.cos(), angle.sin()], 1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", wave)))
    c = F.silu(c + state["y_embedder.embedding_table.weight"][y])
    for layer in range(DEPTH):
        block = f"blocks.{layer}."
        b1, s1, g1, b2, s2, g2 = linear(f"{block}adaLN_modulation.1", c).chunk(6, 1)
        tokens = tokens + g1[:, None] * _attention(state, block, normed(tokens, b1, s1), heads, linear)
        read = normed(tokens, b2, s2)
        if f"{block}mlp.fc1.weight" in state:
            answer = linear(f"{block}mlp.fc2", F.gelu(linear(f"{block}mlp.fc1", read), approximate="tanh"))
        else:
            p = linear(f"{block}moe.gate", read).softmax(-1)
            smallest = p.topk(2, -1).values[..., 1:]
            gates = torch.where(p >= smallest, p, torch.zeros(()))
            experts = [swiglu(f"{block}moe.experts.{e}", read) for e in range(p.shape[-1])]
            answer = sum(gates[..., e : e + 1] * experts[e] for e in range(len(experts)))
            answer = answer + swiglu(f"{block}moe.shared_experts", read)
        tokens = tokens + g2[:, None] * answer
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, 1)
    values = linear("final_layer.linear", normed(tokens, shift, scale))
    side = SIDE // PATCH
    grid = values.view(len(x), side, side, PATCH, PATCH, 2 * CHANNELS)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 2 * CHANNELS, SIDE, SIDE)


def _attention(state: State, block: str, x: Tensor, heads: int, linear: Callable[[str, Tensor], Tensor]) -> Tensor:
    flash = f"{block}attn.Wqkv.weight" in state
    parts = linear(f"{block}attn.{'Wqkv' if flash else 'qkv'}", x).unflatten(-1, (3, heads, -1)).unbind(2)
    query, key, value = (part.transpose(1, 2) for part in parts)
    if flash:
        query, key = (
            F.layer_norm(
                part, part.shape[-1:], state[f"{block}attn.{name}.weight"], state[f"{block}attn.{name}.bias"], 1e-6
            )
            for part, name in ((query, "q_norm"), (key, "k_norm"))
        )
    weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
    return linear(f"{block}attn.{'out_proj' if flash else 'proj'}", (weights @ value).transpose(1, 2).flatten(2))
