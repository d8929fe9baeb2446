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

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        assert config.routing.top_k is not None, "DiT-MoE has a top_k"
        self.top_k = config.routing.top_k
        self.gating = config.routing.gating
        self.balance_loss_weight = config.routing.balance_loss_weight

    def decide(self, logits_GSE: Tensor) -> GroupDecision:
        """Without a limit every choice is processed and slots of less loaded experts stay empty."""
        _, size, num_experts = logits_GSE.shape
        gate_GSK, choice_GSK = affinity(logits_GSE, self.gating).topk(self.top_k, dim=-1)
        choice_GKS, gate_GKS = choice_GSK.transpose(1, 2), gate_GSK.transpose(1, 2)
        location_GKS = queue_locations(choice_GKS, num_experts)
        if self.factors[self.training] is None:
            capacity = int(location_GKS.max()) + 1
            kept_GKS = choice_GKS
        else:
            capacity = self.capacity(size, round_up=True)
            kept_GKS = choice_GKS.masked_fill(location_GKS >= capacity, -1)
        slots = fill_slots(kept_GKS, location_GKS, gate_GKS, num_experts, capacity)
        loss = balance_loss(logits_GSE.flatten(0, 1), choice_GSK.flatten(0, 1))
        return GroupDecision(*slots, auxiliary_loss=self.balance_loss_weight * loss)
