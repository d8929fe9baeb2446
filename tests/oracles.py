"""Slow, obviously right references: routing token by token and expert by expert, in plain Python loops.

A routing table is the list of (token, expert, weight) that a router decides on; a token that appears in no row is
dropped or chosen by nobody. Weights and losses stay tensors, so that gradients can be held against the fast path.

Legend: S tokens of a group, N tokens of the batch, B images, T tokens of an image, E experts, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.config.schema import RoutingConfig


class Row(NamedTuple):
    """One token processed by one expert."""

    token: int
    expert: int
    weight: Tensor


class Decision(NamedTuple):
    """A routing table and the auxiliary loss, before `routing.balance_loss_weight`."""

    table: list[Row]
    loss: Tensor


def route(routing: RoutingConfig, logits_BTE: Tensor, factor: float | None) -> Decision:
    """The whole batch, group after group; the loss is the mean over tokens. Tokens are numbered over the batch."""
    num_images, num_tokens, num_experts = logits_BTE.shape
    group_images = num_images if routing.group_images == "batch" else int(routing.group_images or 0)
    table, losses = [], []
    for first in range(0, num_images, group_images):
        logits_SE = logits_BTE[first : first + group_images].reshape(-1, num_experts)
        decision = _route_group(routing, logits_SE, capacity_of(routing, len(logits_SE), factor))
        table += [Row(row.token + first * num_tokens, row.expert, row.weight) for row in decision.table]
        losses.append(decision.loss * len(logits_SE) / (num_images * num_tokens))
    return Decision(table, torch.stack(losses).sum())


def capacity_of(routing: RoutingConfig, size: int, factor: float | None) -> int | None:
    """C = S f_c / E in fractions: experts that choose round down, tokens that choose round up."""
    if factor is None:
        return None
    exact = Fraction(str(factor)) * size / routing.num_experts
    return math.floor(exact) if routing.name == "expert_choice" else math.ceil(exact)


def _route_group(routing: RoutingConfig, logits_SE: Tensor, capacity: int | None) -> Decision:
    top_k = routing.top_k or 0
    if routing.name == "expert_choice":
        assert capacity is not None
        return Decision(expert_choice(logits_SE, capacity, routing.gating or ""), torch.zeros(()))
    if routing.name == "shared_expert":
        return shared_expert(logits_SE, top_k, capacity, routing.gating or "")
    if top_k == 1:
        return switch(logits_SE)
    return gshard_top_2(logits_SE, capacity) if top_k == 2 else deepspeed_top_k(logits_SE, top_k, capacity)


def affinities(logits_E: Tensor, gating: str) -> list[Tensor]:
    """Of one token to every expert."""
    if gating == "identity":
        return list(logits_E)
    if gating == "sigmoid":
        return [1 / (1 + (-logit).exp()) for logit in logits_E]
    total = sum(logit.exp() for logit in logits_E)
    return [logit.exp() / total for logit in logits_E]


def expert_choice(logits_SE: Tensor, capacity: int, gating: str) -> list[Row]:
    """EC-DIT, equations 5 to 8: each expert takes the `capacity` tokens that it wants most."""
    wanted = [affinities(logits_E, gating) for logits_E in logits_SE]
    table = []
    for expert in range(logits_SE.shape[1]):
        ranking = sorted(range(len(wanted)), key=lambda token: -wanted[token][expert].item())
        table += [Row(token, expert, wanted[token][expert]) for token in ranking[:capacity]]
    return table


def switch(logits_SE: Tensor) -> Decision:
    """Switch without drops: the best expert, with its raw probability."""
    probabilities = [affinities(logits_E, "softmax") for logits_E in logits_SE]
    picks = [_best(logits_E, 1)[0] for logits_E in logits_SE]
    table = [Row(token, expert, probabilities[token][expert]) for token, expert in enumerate(picks)]
    return Decision(table, _balance([[pick] for pick in picks], probabilities))


def gshard_top_2(logits_SE: Tensor, capacity: int | None) -> Decision:
    """GShard: all first choices queue before all second ones; gates renormalised over those that found a place."""
    probabilities = [affinities(logits_E, "softmax") for logits_E in logits_SE]
    picks = [_best(logits_E, 2) for logits_E in logits_SE]
    kept = _queue(picks, capacity)
    return Decision(_renormalised(kept, probabilities), _balance([pick[:1] for pick in picks], probabilities))


def deepspeed_top_k(logits_SE: Tensor, top_k: int, capacity: int | None) -> Decision:
    """DeepSpeed's gate for k >= 3: a full expert keeps the tokens with the largest gates."""
    probabilities = [affinities(logits_E, "softmax") for logits_E in logits_SE]
    picks = [_best(logits_E, top_k) for logits_E in logits_SE]
    kept: list[list[int]] = [[] for _ in picks]
    for expert in range(logits_SE.shape[1]):
        askers = [token for token, pick in enumerate(picks) if expert in pick]
        askers.sort(key=lambda token: -probabilities[token][expert].item())
        for token in askers[:capacity]:
            kept[token].append(expert)
    return Decision(_renormalised(kept, probabilities), _balance(picks, probabilities))


def shared_expert(logits_SE: Tensor, top_k: int, capacity: int | None, gating: str) -> Decision:
    """DiT-MoE: top-k, gates as they are, choices in queue order where there is a limit."""
    wanted = [affinities(logits_E, gating) for logits_E in logits_SE]
    probabilities = [affinities(logits_E, "softmax") for logits_E in logits_SE]
    picks = [_best(logits_E, top_k) for logits_E in logits_SE]
    kept = _queue(picks, capacity)
    table = [Row(token, expert, wanted[token][expert]) for token, experts in enumerate(kept) for expert in experts]
    return Decision(table, _balance(picks, probabilities))


def mix(x_ND: Tensor, table: list[Row], weights: Sequence[Tensor], activation: str) -> Tensor:
    """The weighted sum of what the experts of each token answer, [N, D]; `weights` are those of all, and biases."""
    rows = [torch.zeros_like(x_D) for x_D in x_ND]
    for token, expert, weight in table:
        rows[token] = rows[token] + weight * feed_forward(x_ND[token], [each[expert] for each in weights], activation)
    return torch.stack(rows)


def feed_forward(x_D: Tensor, weights: Sequence[Tensor], activation: str) -> Tensor:
    """One token through one expert: exact GELU, or SwiGLU with the gate in the first half of the rows.

    `weights` are both matrices, [F, D] each, and both biases, [F] and [D], where the expert has them.
    """
    w_in_FD, w_out_FD, *biases = weights
    b_in, b_out = biases or (0.0, 0.0)
    hidden = w_in_FD @ x_D + b_in
    if activation == "swiglu":
        half = len(hidden) // 2
        gate, up = hidden[:half], hidden[half:]
        return (gate / (1 + (-gate).exp()) * up) @ w_out_FD + b_out
    return (hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))) @ w_out_FD + b_out


def _best(logits_E: Tensor, count: int) -> list[int]:
    return sorted(range(len(logits_E)), key=lambda expert: -logits_E[expert].item())[:count]


def _queue(picks: list[list[int]], capacity: int | None) -> list[list[int]]:
    """Which picks find a place: first choices in token order, then second choices, until an expert is full."""
    taken: Counter[int] = Counter()
    kept: list[list[int]] = [[] for _ in picks]
    for choice in range(len(picks[0])):
        for token, pick in enumerate(picks):
            if capacity is None or taken[pick[choice]] < capacity:
                kept[token].append(pick[choice])
            taken[pick[choice]] += 1
    return kept


def _renormalised(kept: list[list[int]], probabilities: list[list[Tensor]]) -> list[Row]:
    table = []
    for token, experts in enumerate(kept):
        total = sum(probabilities[token][expert] for expert in experts)
        table += [Row(token, expert, probabilities[token][expert] / total) for expert in experts]
    return table


def _balance(picks: list[list[int]], probabilities: list[list[Tensor]]) -> Tensor:
    """Sum over experts of E x (share of the picks) x (mean probability): 1 when both are even."""
    num_experts, num_picks = len(probabilities[0]), sum(len(pick) for pick in picks)
    loss = torch.zeros(())
    for expert in range(num_experts):
        share = sum(expert in pick for pick in picks) / num_picks
        loss = loss + num_experts * share * sum(row[expert] for row in probabilities) / len(probabilities)
    return loss
