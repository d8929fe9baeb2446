"""DiT-MoE's router (arXiv 2407.11633): softmax top-k over routed experts, gates not renormalised, with a balance loss.

By default no token is dropped: an expert has one slot for each token that chose it. With a `capacity_factor`, choices
beyond the capacity are dropped in queue order, as in GShard. The shared experts, which see every token, are part of the
layer (`layers/feed_forward.py`), not of the decision.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import Choices, GroupDecision
from experiments.routing.losses import balance_loss
from experiments.routing.router import Router, affinity
from experiments.routing.slots import fill_slots, queue_locations


class SharedExpertRouter(Router):
    """The router of DiT-MoE, in which each token chooses k routed experts in addition to the shared ones."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        assert config.routing.top_k is not None, "DiT-MoE has a top_k"
        assert config.routing.top_k <= self.num_experts, "a token cannot pick more experts than there are"
        self.top_k = config.routing.top_k
        self.gating = config.routing.gating
        self.balance_loss_weight = config.routing.balance_loss_weight

    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Drops choices beyond the capacity; experts with fewer choices have empty slots."""
        choice_GSK, gate_GSK, loss = self._ranked(logits_GSE)
        choice_GKS, gate_GKS = choice_GSK.transpose(1, 2), gate_GSK.transpose(1, 2)
        location_GKS = queue_locations(choice_GKS, self.num_experts)
        kept_GKS = choice_GKS.masked_fill(location_GKS >= capacity, -1)
        slots = fill_slots(kept_GKS, location_GKS, gate_GKS, self.num_experts, capacity)
        return GroupDecision(*slots, auxiliary_loss=loss)

    def choose(self, logits_GSE: Tensor) -> Choices:
        """Returns the k experts of every token; none is dropped."""
        choice_GSK, gate_GSK, loss = self._ranked(logits_GSE)
        return Choices(choice_GSK.flatten(0, 1), gate_GSK.flatten(0, 1), loss)

    def _ranked(self, logits_GSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the experts of each token, their gates, and the weighted balance loss."""
        gate_GSK, choice_GSK = affinity(logits_GSE, self.gating).topk(self.top_k, dim=-1)
        return choice_GSK, gate_GSK, self.balance_loss_weight * balance_loss(logits_GSE, choice_GSK)
