"""Expert choice: each expert takes the C = S f_c / E tokens of a group with the highest affinity to it.

EC-DIT (arXiv 2410.02098), equations 5 to 8, after Zhou et al. 2022 (arXiv 2202.09368): softmax over experts in float32,
top-C over tokens, raw affinities as gates, no auxiliary loss, since every expert is full by construction. A token may
be taken by many experts or by none. `routing.gating` swaps the softmax (Expert Race, arXiv 2503.16057, table 1).
"""

from __future__ import annotations

from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import GroupDecision
from experiments.routing.router import Router, affinity


class ExpertChoiceRouter(Router):
    """The router of EC-DIT, in which experts choose tokens."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.gating = config.routing.gating

    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Fills every slot of every expert; the order of an expert's slots has no meaning."""
        # Logits are transposed first: on CPUs a softmax over rows of 8 numbers takes 6 times as long as over columns.
        affinity_GES = affinity(logits_GSE.transpose(1, 2), self.gating, dim=1)
        weight_GEC, token_GEC = affinity_GES.topk(capacity, dim=-1, sorted=False)
        return GroupDecision(token_GEC, weight_GEC, filled_GEC=None, auxiliary_loss=None)
