"""DiT-MoE's router (arXiv 2407.11633): softmax top-k over routed experts, gates not renormalised, with a balance loss.

By default no token is dropped; the number of slots follows the fullest expert. With a `capacity_factor`, choices beyond
it are dropped in queue order, as in GShard. The shared experts, which see every token, are part of the layer
(`layer.py`), not of the decision.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import GroupDecision
from experiments.routing.losses import balance_loss
from experiments.routing.router import Router, affinity
from experiments.routing.slots import fill_slots, queue_locations


class SharedExpertRouter(Router):
    """Tokens choose k routed experts beside the shared ones."""

    rounds_capacity_up = True

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        assert config.routing.top_k is not None, "DiT-MoE has a top_k"
        assert config.routing.top_k <= self.num_experts, "a token cannot pick more experts than there are"
        self.top_k = config.routing.top_k
        self.gating = config.routing.gating
        self.balance_loss_weight = config.routing.balance_loss_weight

    def decide(self, logits_GSE: Tensor, capacity: int | None) -> GroupDecision:
        """Without a limit every choice is processed and slots of less loaded experts stay empty."""
        gate_GSK, choice_GSK = affinity(logits_GSE, self.gating).topk(self.top_k, dim=-1)
        loss = balance_loss(logits_GSE, choice_GSK)
        if capacity is None:
            choice_GSK, gate_GSK = (x_GSK.reshape(1, -1, self.top_k) for x_GSK in (choice_GSK, gate_GSK))
        choice_GKS, gate_GKS = choice_GSK.transpose(1, 2), gate_GSK.transpose(1, 2)
        location_GKS = queue_locations(choice_GKS, self.num_experts)
        kept_GKS = choice_GKS if capacity is None else choice_GKS.masked_fill(location_GKS >= capacity, -1)
        slots = fill_slots(kept_GKS, location_GKS, gate_GKS, self.num_experts, capacity)
        return GroupDecision(*slots, auxiliary_loss=self.balance_loss_weight * loss)
