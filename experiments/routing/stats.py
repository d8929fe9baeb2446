"""Statistics of a routed layer: load, entropy, experts per token and the compute that tokens and images get.

Counts accumulate over batches, so that a share is a share of all tokens seen and not a mean of batch means.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from experiments.records.record_types import RoutingRow
from experiments.routing.contract import Assignment, FeedForwardOutput

NUM_TIME_BUCKETS = 10
MOST_USED_SHARE = 0.95
"""The share of co-activations whose pairs of experts count as used (Expert Race, arXiv 2503.16057, section 4.2)."""


class RoutingStats:
    """Load, entropy, experts per token, pairs of experts and compute by time and image of one layer."""

    def __init__(self, num_experts: int) -> None:
        self.load_E = torch.zeros(num_experts, dtype=torch.float64)
        self.tokens_by_experts = torch.zeros(num_experts + 1, dtype=torch.float64)
        self.together_EE = torch.zeros(num_experts, num_experts, dtype=torch.float64)
        self.entropy_sum = 0.0
        self.num_tokens = 0
        self.num_slots = 0
        self.text_slots = 0
        """The slots of the experts for text tokens; 0 where text tokens have no experts."""
        self.images: list[tuple[float, float]] = []
        """The t of each image, and the mean of expert slots per token in it."""

    @torch.no_grad()
    def add(self, output: FeedForwardOutput, time_B: Tensor) -> None:
        """Adds the counts of one batch, whose images have the times `time_B`."""
        assert output.assignment is not None, "a dense layer routes nothing"
        assignment = output.assignment
        experts_N = assignment.experts_per_token_N.cpu()
        self.load_E += _load_E(assignment).double().cpu()
        self.tokens_by_experts += torch.bincount(experts_N, minlength=self.tokens_by_experts.numel())
        chosen_NE = assignment.chosen_NE.float()
        self.together_EE += (chosen_NE.T @ chosen_NE).double().cpu()
        self.entropy_sum += float(token_entropy_N(assignment.logits_NE).sum())
        self.num_tokens += experts_N.numel()
        self.num_slots += assignment.num_slots
        self.text_slots += 0 if output.text_assignment is None else output.text_assignment.num_slots
        experts_B = experts_N.view(output.out_BTD.shape[:2]).double().mean(dim=1)
        if assignment.mixture is not None:  # a token reaches all experts, through fewer slots than that
            experts_B = torch.full_like(experts_B, assignment.num_slots / experts_N.numel())
        self.images += zip(time_B.tolist(), experts_B.tolist(), strict=True)

    def merge(self, other: RoutingStats) -> None:
        """Adds the counts of another process."""
        self.load_E += other.load_E
        self.tokens_by_experts += other.tokens_by_experts
        self.together_EE += other.together_EE
        self.entropy_sum += other.entropy_sum
        self.num_tokens += other.num_tokens
        self.num_slots += other.num_slots
        self.text_slots += other.text_slots
        self.images += other.images

    @property
    def dropped_share(self) -> float:
        """Returns the share of tokens that no expert processed."""
        return float(self.tokens_by_experts[0]) / self.num_tokens

    @property
    def slots_per_token(self) -> float:
        """Returns the expert slots that were computed per token, empty ones included."""
        return self.num_slots / self.num_tokens

    @property
    def slots_per_image(self) -> float:
        """Returns the expert slots that were computed per image, those of text tokens included."""
        return (self.num_slots + self.text_slots) / len(self.images)

    def row(self, images_seen: int, layer: int, condition: Literal["mixed_t", "same_t"]) -> RoutingRow:
        """Returns the record of these statistics; both entropies are in units of their maximum, log E."""
        load_E = self.load_E / self.load_E.sum().clamp_min(1)
        log_experts = math.log(max(2, load_E.numel()))
        experts = sorted(experts for _, experts in self.images)
        return RoutingRow(
            images_seen=images_seen,
            layer=layer,
            condition=condition,
            load=load_E.tolist(),
            entropy=self.entropy_sum / self.num_tokens / log_experts,
            load_entropy=_entropy(load_E) / log_experts,
            dropped_share=self.dropped_share,
            experts_per_token=trimmed(self.tokens_by_experts / self.num_tokens).tolist(),
            slots_per_token=self.slots_per_token,
            pair_usage=pair_usage(self.together_EE),
            slots_by_time=_means_by_time(self.images),
            slots_by_image=[experts[0], experts[len(experts) // 2], experts[-1]],
        )


def slots_of_image(answers: Sequence[FeedForwardOutput]) -> Tensor:
    """Returns the expert slots that were computed per image over all routed layers, float32 scalar, without a wait."""
    given = [each for answer in answers for each in (answer.assignment, answer.text_assignment)]
    counts = [assignment.num_slots_tensor for assignment in given if assignment is not None]
    return torch.stack(counts).sum() / len(answers[0].out_BTD)


def pair_usage(together_EE: Tensor) -> float | None:
    """Returns the share of pairs of experts that make up 95% of all co-activations; None where there are none.

    `together_EE` counts the tokens that both experts process. Expert Race, arXiv 2503.16057, section 4.2.
    """
    first, second = torch.triu_indices(together_EE.shape[0], together_EE.shape[1], offset=1)
    counts = together_EE[first, second].sort(descending=True).values
    if not counts.numel() or not bool(counts.sum() > 0):
        return None
    reached = counts.cumsum(0) < MOST_USED_SHARE * counts.sum()
    return (int(reached.sum()) + 1) / counts.numel()


def _load_E(assignment: Assignment) -> Tensor:
    """Returns the tokens that each expert processes; with soft MoE the sum of the weights with which they read it."""
    if assignment.mixture is None:
        return assignment.tokens_per_expert_E
    return assignment.weight_M.view(assignment.logits_NE.shape[1], -1).sum(dim=1)


def _means_by_time(images: Sequence[tuple[float, float]]) -> list[float | None]:
    """Returns the mean of experts per token of the images in each tenth of t."""
    by_time: list[list[float]] = [[] for _ in range(NUM_TIME_BUCKETS)]
    for time, experts in images:
        by_time[min(int(time * NUM_TIME_BUCKETS), NUM_TIME_BUCKETS - 1)].append(experts)
    return [sum(inside) / len(inside) if inside else None for inside in by_time]


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
