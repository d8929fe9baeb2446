"""The weights with which the results of experts enter a layer's output, the same for every router.

A router decides with which gate an expert processes a token. Two settings change gates after the decision, so that the
routed branch keeps its size when the number of experts E changes. `routing.gate_norm=token` divides the gates of a
token by their sum over the experts that took it. `routing.gate_scale` multiplies all gates; `auto` is E / f_c for the
softmax gates of expert choice, which are 1 / E on average while f_c experts answer for a token. That this lets a
learning rate carry over between numbers of experts is a hypothesis (docs/transfer.md).

Legend: N tokens, M slots of all experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.layers.dispatch import Places, combine, gather

LEAST_SUM = 1e-20
"""The least sum that gates are divided by: gates that are all 0 stay 0, and their gradients stay finite."""


@dataclass(frozen=True)
class Gates:
    """Says what is done to the router's weights: whether those of a token are normalised, and the factor on all."""

    by_token: bool = False
    scale: float = 1.0

    @classmethod
    def of(cls, config: RunConfig) -> Gates:
        """Returns what the settings of `config.routing` ask for."""
        routing = config.routing
        scale = routing.gate_scale
        if scale == "auto":
            assert routing.capacity_factor is not None, "experts that choose have a capacity"
            scale = routing.num_experts / routing.capacity_factor
        return cls(routing.gate_norm == "token", scale)

    def __call__(self, weight_M: Tensor, places: Places) -> Tensor:
        """Returns the weights of the slots, float32 [M], in which sums over a token's slots have a fixed order."""
        if self.by_token:
            sum_N1 = combine(torch.ones_like(weight_M).unsqueeze(1), weight_M, places)
            weight_M = weight_M / gather(sum_N1, places).squeeze(1).clamp_min(LEAST_SUM)
        return self._scaled(weight_M)

    def plain(self, weight_M: Tensor, token_M: Tensor, num_tokens: int) -> Tensor:
        """Returns the same in plain operations, which is the reference."""
        if self.by_token:
            sum_N = weight_M.new_zeros(num_tokens).index_add(0, token_M, weight_M)
            weight_M = weight_M / sum_N[token_M].clamp_min(LEAST_SUM)
        return self._scaled(weight_M)

    def _scaled(self, weight_M: Tensor) -> Tensor:
        return weight_M if self.scale == 1 else weight_M * self.scale


AS_DECIDED = Gates()
"""The router's own weights, which are the default."""
