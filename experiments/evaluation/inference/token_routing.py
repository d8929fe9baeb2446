"""Counts which expert processed which token, over images and for one routed layer, and makes a record of the counts.

A tally holds counts, so that tallies of batches, times or layers can be added. `routing_maps.py` decides what is
watched, and when.

Legend: B images, T tokens of an image, E experts, N tokens of the batch (B T), M slots of all experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.records.routing_map_row import RoutingMapRow
from experiments.routing.contract import Assignment
from experiments.routing.stats import token_entropy_N, trimmed

DIGITS = 6
"""The number of decimals in the records."""


def processed_BTE(assignment: Assignment, num_images: int) -> Tensor:
    """Returns bool [B, T, E] on the CPU: whether an expert processed a token."""
    num_tokens, num_experts = assignment.logits_NE.shape
    token_M, filled_M = assignment.token_M, assignment.filled_M
    filled_M = torch.ones_like(token_M) if filled_M is None else filled_M.long()
    count_NE = torch.zeros(num_tokens, num_experts, dtype=torch.int64, device=token_M.device)
    count_NE.index_put_((token_M, assignment.expert_M), filled_M, accumulate=True)
    return (count_NE > 0).view(num_images, -1, num_experts).cpu()


def entropy_BT(assignment: Assignment, num_images: int) -> Tensor:
    """Returns the entropy of each token's affinities over the experts, divided by log E: float32 [B, T] on the CPU."""
    entropy_N = token_entropy_N(assignment.logits_NE) / math.log(max(2, assignment.logits_NE.shape[-1]))
    return entropy_N.view(num_images, -1).cpu()


class TokenTally:
    """The counts of one layer, over any number of images and times."""

    def __init__(self, num_experts: int, num_tokens: int) -> None:
        """Prepares counters for images of `num_tokens` tokens."""
        self.load_ET = torch.zeros(num_experts, num_tokens, dtype=torch.float64)
        self.tokens_by_experts = torch.zeros(num_experts + 1, dtype=torch.float64)
        self.entropy_sum = 0.0
        self.num_looks = 0
        self.load_by_kind: dict[str, Tensor] = {}
        self.on_objects_2 = torch.zeros(2, dtype=torch.float64)
        self.on_background_2 = torch.zeros(2, dtype=torch.float64)
        self.branches_2 = torch.zeros(2, dtype=torch.float64)

    def add(self, by_expert_BTE: Tensor, entropy: Tensor, kinds: Sequence[str]) -> None:
        """Adds images: who processed what, the entropy of each token [B, T], and the kind of each image's caption."""
        counts_BT = by_expert_BTE.sum(dim=-1)
        self.load_ET += by_expert_BTE.sum(dim=0).T
        self.tokens_by_experts += torch.bincount(counts_BT.flatten(), minlength=len(self.tokens_by_experts))
        self.entropy_sum += float(entropy.double().sum())
        self.num_looks += len(by_expert_BTE)
        load_BE = by_expert_BTE.sum(dim=1).double()
        for kind, load_E in zip(kinds, load_BE, strict=True):
            self.load_by_kind[kind] = self.load_by_kind.get(kind, 0) + load_E

    def add_places(self, counts_BT: Tensor, objects_BT: Tensor, background_BT: Tensor) -> None:
        """Adds the experts of tokens on objects and of tokens on background, given as bool masks [B, T]."""
        self.on_objects_2 += torch.stack([counts_BT[objects_BT].sum(), objects_BT.sum()])
        self.on_background_2 += torch.stack([counts_BT[background_BT].sum(), background_BT.sum()])

    def add_branches(self, conditional_BTE: Tensor, unconditional_BTE: Tensor) -> None:
        """Adds the assignments that both branches of guidance have, and those of either."""
        self.branches_2 += branch_pairs_B2(conditional_BTE, unconditional_BTE).sum(dim=0)

    def merge(self, other: TokenTally) -> None:
        """Adds the counts of another tally."""
        self.load_ET += other.load_ET
        self.tokens_by_experts += other.tokens_by_experts
        self.entropy_sum += other.entropy_sum
        self.num_looks += other.num_looks
        for kind, load_E in other.load_by_kind.items():
            self.load_by_kind[kind] = self.load_by_kind.get(kind, 0) + load_E
        self.on_objects_2 += other.on_objects_2
        self.on_background_2 += other.on_background_2
        self.branches_2 += other.branches_2

    def fields(self, with_positions: bool) -> dict[str, Any]:
        """Returns the fields of a `RoutingMapRow` for these counts, without those for which nothing was counted."""
        num_tokens = float(self.tokens_by_experts.sum())
        found: dict[str, Any] = {
            "load": _rounded(_shares(self.load_ET.sum(dim=1))),
            "entropy": round(self.entropy_sum / num_tokens, DIGITS),
            "dropped_share": round(float(self.tokens_by_experts[0]) / num_tokens, DIGITS),
            "experts_per_token": _rounded(trimmed(self.tokens_by_experts / num_tokens)),
        }
        for name, (experts, tokens) in (
            ("object_experts", self.on_objects_2.tolist()),
            ("background_experts", self.on_background_2.tolist()),
        ):
            if tokens:
                found[name] = round(experts / tokens, DIGITS)
        if self.branches_2[1]:
            found["divergence"] = round(float(1 - self.branches_2[0] / self.branches_2[1]), DIGITS)
        if with_positions:
            by_position_T = self.load_ET.sum(dim=0)
            found["experts_by_position"] = _rounded(by_position_T / self.num_looks)
            found["load_by_position"] = [_rounded(row) for row in self.load_ET / by_position_T.clamp(min=1)]
            found["load_by_kind"] = {kind: _rounded(_shares(load_E)) for kind, load_E in self.load_by_kind.items()}
        return found

    def row(self, base: RoutingMapRow, layer: int, time: float | None, with_positions: bool) -> RoutingMapRow:
        """Returns the record: `base` with the counts."""
        update = {"layer": layer, "time": time, **self.fields(with_positions)}
        return base.model_copy(update=update)


def branch_pairs_B2(conditional_BTE: Tensor, unconditional_BTE: Tensor) -> Tensor:
    """Returns 2 |C and U| and |C| + |U| of each image, over (token, expert) pairs: float64 [B, 2].

    C and U are the pairs of the conditional and the unconditional branch; the ratio is their Dice coefficient.
    """
    both_B = 2 * (conditional_BTE & unconditional_BTE).sum(dim=(1, 2))
    either_B = conditional_BTE.sum(dim=(1, 2)) + unconditional_BTE.sum(dim=(1, 2))
    return torch.stack([both_B, either_B], dim=1).double()


def _shares(load_E: Tensor) -> Tensor:
    return load_E / load_E.sum().clamp(min=1)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
