"""What a router decides and what every feed-forward layer answers.

A router turns tokens into an `Assignment`: which token sits in which slot of which expert, and with which weight its
result is added back. Everything after that (gather, expert matmuls, weighted sum) is `experts.py`, the same for every
router, so that a comparison of routers compares decisions and not implementations. What modules return are named
tuples: ZeRO-3 looks into tuples for the tensors by which it knows that a layer's backward pass begins.

Legend: B images, T tokens of an image, N = B T tokens of the batch, D width, E experts, G routing groups, S tokens of
a group, C slots of an expert in a group, P slots of an expert over all groups (G C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupDecision:
    """One router's decision over G groups of S tokens.

    token_GEC: int64, index in the group of the token in each slot (any valid index where empty).
    weight_GEC: float32, combine weight; 0 where empty.
    filled_GEC: bool, or None when every slot holds a token.
    auxiliary_loss: float32 scalar, already weighted, mean over groups; None where balance holds by construction.
    """

    token_GEC: Tensor
    weight_GEC: Tensor
    filled_GEC: Tensor | None
    auxiliary_loss: Tensor | None


class Assignment(NamedTuple):
    """The decision for a whole batch, tokens numbered flat over it.

    token_EP: int64 in [0, N). weight_EP: float32. filled_EP: bool or None. logits_NE: float32, without gradient.
    auxiliary_loss: float32 scalar or None.
    """

    token_EP: Tensor
    weight_EP: Tensor
    filled_EP: Tensor | None
    logits_NE: Tensor
    auxiliary_loss: Tensor | None

    @property
    def tokens_per_expert_E(self) -> Tensor:
        """Int64 [E]: tokens that each expert processes."""
        num_experts, num_slots = self.token_EP.shape
        if self.filled_EP is None:
            return torch.full((num_experts,), num_slots, device=self.token_EP.device)
        return self.filled_EP.sum(dim=1)

    @property
    def experts_per_token_N(self) -> Tensor:
        """Int64 [N]: experts that process each token; 0 for a token that is dropped or chosen by nobody."""
        counts_N = torch.zeros(self.logits_NE.shape[0], dtype=torch.int64, device=self.token_EP.device)
        filled_EP = torch.ones_like(self.token_EP) if self.filled_EP is None else self.filled_EP.long()
        return counts_N.scatter_add_(0, self.token_EP.reshape(-1), filled_EP.reshape(-1))


class FeedForwardOutput(NamedTuple):
    """What every feed-forward layer answers, dense or routed.

    out_BTD: in the type of the input. auxiliary_loss: float32 scalar, 0 where balance holds by construction.
    tokens_per_expert_E: int64; a dense layer is one expert that sees every token. experts_per_token_BT: int64.
    assignment: None when dense.
    """

    out_BTD: Tensor
    auxiliary_loss: Tensor
    assignment: Assignment | None = None

    @property
    def tokens_per_expert_E(self) -> Tensor:
        """Int64 [E]; [B T] when dense."""
        if self.assignment is None:
            return torch.tensor([self.out_BTD.shape[0] * self.out_BTD.shape[1]], device=self.out_BTD.device)
        return self.assignment.tokens_per_expert_E

    @property
    def experts_per_token_BT(self) -> Tensor:
        """Int64 [B, T]; ones when dense."""
        if self.assignment is None:
            return torch.ones(self.out_BTD.shape[:2], dtype=torch.int64, device=self.out_BTD.device)
        return self.assignment.experts_per_token_N.view(self.out_BTD.shape[:2])


def flatten_groups(decisions: Sequence[GroupDecision], sizes: Sequence[int], logits_NE: Tensor) -> Assignment:
    """One assignment over the batch from decisions over consecutive stretches of it.

    `sizes[i]` is S, the tokens of one group, in `decisions[i]`; there is more than one decision only where the last
    group of an evaluation batch is smaller than the others. Auxiliary losses are averaged by tokens.
    """
    tokens, weights, filled, losses = [], [], [], []
    start, num_tokens = 0, logits_NE.shape[0]
    for decision, size in zip(decisions, sizes, strict=True):
        num_groups = decision.token_GEC.shape[0]
        first_G11 = start + size * torch.arange(num_groups, device=logits_NE.device).view(-1, 1, 1)
        tokens.append(_experts_first(decision.token_GEC + first_G11))
        weights.append(_experts_first(decision.weight_GEC))
        filled += [] if decision.filled_GEC is None else [_experts_first(decision.filled_GEC)]
        if decision.auxiliary_loss is not None:
            losses.append(decision.auxiliary_loss * (num_groups * size / num_tokens))
        start += num_groups * size
    return Assignment(
        token_EP=torch.cat(tokens, dim=1),
        weight_EP=torch.cat(weights, dim=1),
        filled_EP=torch.cat(filled, dim=1) if filled else None,
        logits_NE=logits_NE.detach(),
        auxiliary_loss=torch.stack(losses).sum() if losses else None,
    )


def _experts_first(slots_GEC: Tensor) -> Tensor:
    num_experts = slots_GEC.shape[1]
    return slots_GEC.transpose(0, 1).reshape(num_experts, -1)
