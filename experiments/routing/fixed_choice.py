"""Routers that do not read the token: by noise level, by position, and at random. Each token has one expert, gate 1.

- `TimestepRouter`: expert floor(t E) serves all tokens of an image. eDiff-I (arXiv 2211.01324) trains a whole model for
  each interval of t; here it is the routed layers that change with t.
- `HashRouter`: an expert for each position of the grid, in equal numbers. Hash layers (arXiv 2106.04426) take a hash of
  the token's identity, which an image patch does not have.
- `RandomRouter`: a pseudo-random function of t, position and layer. It is new for every training image, since t is, and
  yet the same when activation checkpointing computes the block again.

The last two are controls: what a learned router gains over them is what routing is worth.

Legend: as in `contract.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from experiments.routing.contract import RoutingContext
from experiments.routing.top_k import TopKRouter

CERTAIN = 1e4
"""The logit of the chosen expert above all others: its softmax is exactly 1 in float32."""
_MIX, _MIX_AGAIN = 0x1F85EBCA6B, 0x27D4EB2F16
"""Large factors, whose products differ in all bits for neighbouring numbers."""


class FixedRouter(TopKRouter, ABC):
    """A router whose logits are certain of one expert, which `choice` names."""

    @abstractmethod
    def choice(self, context: RoutingContext) -> Tensor:
        """Returns the expert of each token, int64 [B, T]."""

    def logits(self, x_BTD: Tensor, context: RoutingContext) -> Tensor:
        """Returns float32 logits [B, T, E] that say which expert is fixed."""
        choice_BT = self.choice(context)
        logits_BTE = torch.zeros(*choice_BT.shape, self.num_experts, device=choice_BT.device)
        return logits_BTE.scatter_(2, choice_BT.unsqueeze(-1), CERTAIN)


class TimestepRouter(FixedRouter):
    """An expert for each of E equal intervals of the noise level."""

    def choice(self, context: RoutingContext) -> Tensor:
        """Returns the interval of t, from 0 for the cleanest images."""
        interval_B = (context.time_B * self.num_experts).long().clamp(0, self.num_experts - 1)
        return interval_B.unsqueeze(1).expand_as(context.position_BT)


class HashRouter(FixedRouter):
    """An expert for each position of the grid; every layer has another assignment."""

    def choice(self, context: RoutingContext) -> Tensor:
        """Returns the expert of the position, an equal number of positions for each."""
        # Every E consecutive positions go to all E experts in turn. The first of these depends on the positions and the
        # layer. So experts have equally many positions on any grid whose size E divides.
        return (_mixed(context.position_BT // self.num_experts + self.layer) + context.position_BT) % self.num_experts


class RandomRouter(FixedRouter):
    """A pseudo-random expert for each token."""

    def choice(self, context: RoutingContext) -> Tensor:
        """Returns a function of t, position and layer that looks random."""
        bits_B = context.time_B.float().contiguous().view(torch.int32).long()
        seed_BT = _mixed(bits_B.unsqueeze(1) + 7919 * self.layer) + context.position_BT
        return _mixed(seed_BT) % self.num_experts


def _mixed(number: Tensor) -> Tensor:
    """Returns non-negative int64 numbers that look random, the same for the same number (after splitmix64)."""
    number = number * _MIX
    number = (number ^ (number >> 31)) * _MIX_AGAIN
    return ((number ^ (number >> 29)) & (2**62 - 1)) >> 8
