"""The router: a linear map to expert logits in float32, routing groups, and a decision left to the subclass.

A routing group is `routing.group_images` consecutive images of one process's batch; tokens compete for slots inside
their group only. With one image per group no image changes another. In evaluation a last group may be smaller.

Legend: as in `contract.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from experiments.config.budget import capacity_factor, expert_capacity
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.routing.contract import Assignment, GroupDecision, flatten_groups


class Router(nn.Module, ABC):
    """Decides which token goes to which slot of which expert, with which weight."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.num_experts = config.routing.num_experts
        self.group_images = config.routing.group_images
        self.factors = {training: capacity_factor(config, training) for training in (True, False)}
        self.weight_DE = nn.Parameter(torch.empty(config.model.width, self.num_experts))
        nn.init.normal_(self.weight_DE, std=config.model.width**-0.5)

    @abstractmethod
    def decide(self, logits_GSE: Tensor) -> GroupDecision:
        """The decision for G groups of S tokens from their float32 logits."""

    def forward(self, x_BTD: Tensor) -> Assignment:
        """Logits in float32, whatever the precision of `x_BTD`; then each group's decision."""
        num_images, num_tokens, width = x_BTD.shape
        logits_NE = x_BTD.reshape(-1, width).float() @ self.weight_DE.float()
        group = self._group_size(num_images)
        rest = num_images % group
        assert not (rest and self.training), f"{num_images} images are not whole groups of {group}"
        split = (num_images - rest) * num_tokens
        sizes = [group * num_tokens] + ([rest * num_tokens] if rest else [])
        pieces = [logits_NE[:split], logits_NE[split:]][: len(sizes)]
        decisions = [
            self.decide(piece.view(-1, size, self.num_experts)) for piece, size in zip(pieces, sizes, strict=True)
        ]
        return flatten_groups(decisions, sizes, logits_NE)

    def _group_size(self, num_images: int) -> int:
        """Images of a routing group; without a limit on slots nothing competes, so the batch is one group."""
        if self.group_images == "batch" or self.factors[self.training] is None:
            return num_images
        return min(int(self.group_images or 1), num_images)

    def capacity(self, num_group_tokens: int, round_up: bool) -> int:
        """C = S f_c / E, at most S; a `ConfigError` when it is less than one slot."""
        factor = self.factors[self.training]
        assert factor is not None, "without a limit the router sizes the slots itself"
        slots = expert_capacity(num_group_tokens, factor, self.num_experts, round_up)
        if slots < 1:
            setting = "routing.capacity_factor" if self.training else "routing.eval_capacity_factor"
            raise ConfigError(
                f"{setting}={factor:g} leaves each of {self.num_experts} experts less than one slot in a group of "
                f"{num_group_tokens} tokens.",
                f"Raise it to at least {self.num_experts / num_group_tokens:g}, or route more images together.",
            )
        return min(slots, num_group_tokens)


def affinity(logits: Tensor, gating: str | None) -> Tensor:
    """How much a token and an expert want each other: softmax over experts, sigmoid, or the logit itself."""
    if gating == "sigmoid":
        return logits.sigmoid()
    if gating == "identity":
        return logits
    return logits.softmax(dim=-1)
