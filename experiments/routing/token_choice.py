"""Token choice and switch: each token picks its top-k experts, by DeepSpeed's own gates.

k = 2 is GShard (arXiv 2006.16668): gates renormalised over the two, second choices queue behind all first ones. k = 1
is Switch (arXiv 2101.03961): the raw probability. Both drop tokens beyond the capacity and carry an auxiliary loss.
DeepSpeed leaves noise on in evaluation (random token selection for k = 1, a sampled second expert for k = 2); it is
turned off here, so that a decision is a function of the logits. `routing.capacity_factor` counts slots per token:
DeepSpeed's k = 2, capacity factor 1 is f_c = 2.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import GroupDecision
from experiments.routing.deepspeed_library import top1gating, top2gating, topkgating
from experiments.routing.router import Router
from experiments.routing.slots import fill_slots


class TokenChoiceRouter(Router):
    """Tokens choose experts; the decision is DeepSpeed's."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        assert config.routing.top_k is not None, "token choice has a top_k"
        self.top_k = config.routing.top_k
        self.balance_loss_weight = config.routing.balance_loss_weight

    def decide(self, logits_GSE: Tensor) -> GroupDecision:
        """Slots may be empty, and tokens beyond the capacity are processed by fewer experts or by none."""
        num_groups, size, num_experts = logits_GSE.shape
        if num_groups == 1:
            loss_G, capacity, *choices = self._gate(logits_GSE[0])
            choices_GKS = [choice_KS.unsqueeze(0) for choice_KS in choices]
        else:  # the gates know no groups: map them over this axis
            over_groups = torch.vmap(self._gate, out_dims=(0, None, 0, 0, 0))
            loss_G, capacity, *choices_GKS = over_groups(logits_GSE)
        # No token takes two slots of one expert, so more slots than tokens would stay empty.
        slots = fill_slots(*choices_GKS, num_experts=num_experts, capacity=min(int(capacity), size))
        return GroupDecision(*slots, auxiliary_loss=self.balance_loss_weight * loss_G.mean())

    def _gate(self, logits_SE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """DeepSpeed's gate without its noise: loss, capacity, experts, locations and gates, the last three [K, S]."""
        factor = self.factors[self.training]
        drop = factor is not None
        # DeepSpeed multiplies its factor by k; ours is slots per token already.
        per_choice = (factor or 1.0) / self.top_k
        if self.top_k == 1:
            routes = top1gating(logits_SE, per_choice, 1, drop_tokens=drop, use_rts=False, sparse_routes=True)
        elif self.top_k == 2:
            routes = top2gating(
                logits_SE, per_choice, 1, drop_tokens=drop, top2_2nd_expert_sampling=False, sparse_routes=True
            )
        else:
            routes = topkgating(logits_SE, self.top_k, per_choice, 1, drop_tokens=drop, sparse_routes=True)
        loss, capacity, _, expert_KS, location_KS, gate_KS, _ = routes
        return loss, capacity, expert_KS, location_KS, gate_KS
