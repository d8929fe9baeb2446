"""Statistics of a routed layer: load, entropy and experts per token.

Counts accumulate over batches, so that a share is a share of all tokens seen and not a mean of batch means.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from experiments.records.record_types import RoutingRow
from experiments.routing.contract import FeedForwardOutput


class RoutingStats:
    """Load, entropy and experts per token of one layer over many batches."""

    def __init__(self, num_experts: int) -> None:
        self.load_E = torch.zeros(num_experts, dtype=torch.float64)
        self.tokens_by_experts = torch.zeros(num_experts + 1, dtype=torch.float64)
        self.entropy_sum = 0.0
        self.num_tokens = 0

    @torch.no_grad()
    def add(self, output: FeedForwardOutput) -> None:
        """Adds the counts of one batch."""
        assert output.assignment is not None, "a dense layer routes nothing"
        experts_N = output.assignment.experts_per_token_N.cpu()
        self.load_E += output.assignment.tokens_per_expert_E.double().cpu()
        self.tokens_by_experts += torch.bincount(experts_N, minlength=self.tokens_by_experts.numel())
        self.entropy_sum += float(token_entropy_N(output.assignment.logits_NE).sum())
        self.num_tokens += experts_N.numel()

    def merge(self, other: RoutingStats) -> None:
        """Adds the counts of another process."""
        self.load_E += other.load_E
        self.tokens_by_experts += other.tokens_by_experts
        self.entropy_sum += other.entropy_sum
        self.num_tokens += other.num_tokens

    @property
    def dropped_share(self) -> float:
        """Returns the share of tokens that no routed expert processed."""
        return float(self.tokens_by_experts[0]) / self.num_tokens

    def row(self, images_seen: int, layer: int, condition: Literal["mixed_t", "same_t"]) -> RoutingRow:
        """Returns the record of these statistics; both entropies are in units of their maximum, log E."""
        load_E = self.load_E / self.load_E.sum()
        log_experts = math.log(max(2, load_E.numel()))
        return RoutingRow(
            images_seen=images_seen,
            layer=layer,
            condition=condition,
            load=load_E.tolist(),
            entropy=self.entropy_sum / self.num_tokens / log_experts,
            load_entropy=_entropy(load_E) / log_experts,
            dropped_share=self.dropped_share,
            experts_per_token=trimmed(self.tokens_by_experts / self.num_tokens).tolist(),
        )


def _entropy(p_E: Tensor) -> float:
    return float(-torch.special.xlogy(p_E, p_E).sum())


def token_entropy_N(logits_NE: Tensor) -> Tensor:
    """Returns the entropy, in nats, of the softmax of each token's logits over the experts."""
    log_p_NE = logits_NE.log_softmax(dim=-1)
    return -(log_p_NE.exp() * log_p_NE).sum(dim=-1)


def trimmed(share: Tensor) -> Tensor:
    """Cuts trailing zeros, since a token seldom has more than a few of, say, 64 experts."""
    last = int(share.nonzero().max()) if bool(share.any()) else 0
    return share[: last + 1]
