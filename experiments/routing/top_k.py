"""Token choice without DeepSpeed's gates: each token takes the k experts with the highest affinity to it.

DiT-MoE (arXiv 2407.11633): softmax, k = 2, gates not renormalised, with a balance loss. ProMoE (arXiv 2510.24711):
cosines to prototypes, k = 1, no balance loss. Loss-free balancing (arXiv 2408.15664) and DeepSeek-V3, which DSMoE
(arXiv 2512.01252) follows: sigmoid; the choice is by s + b, with a bias b that evens out loads (`state.py`), and the
gates are s.

By default no token is dropped: an expert has one slot for each token that chose it. With a `capacity_factor`, choices
beyond the capacity are dropped in queue order, as in GShard. Shared and unconditional experts are part of the layer
(`layers/feed_forward.py`), not of the decision.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import Assignment, Choices, GroupDecision, RoutingContext
from experiments.routing.logits import affinity
from experiments.routing.losses import balance_loss, counted_balance_loss
from experiments.routing.router import Router
from experiments.routing.slots import fill_slots, queue_locations
from experiments.routing.state import SelectionBias


class TopKRouter(Router):
    """A router in which each token chooses k routed experts."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        routing = config.routing
        assert routing.top_k is not None, "token choice has a top_k"
        assert routing.top_k <= self.num_experts, "a token cannot pick more experts than there are"
        self.top_k, self.gating = routing.top_k, routing.gating
        self.balance_loss_weight, self.balance_scope = routing.balance_loss_weight, routing.balance_scope
        if routing.bias_update_rate:
            self.state = SelectionBias(self.num_experts, routing.bias_update_rate)

    def assign(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        """Decides in groups, and counts how many tokens chose each expert, dropped or not, for the bias."""
        assignment = super().assign(logits_BTE, x_BTD, context)
        if self.state is None or not self.training:
            return assignment
        choice_NK, counted_N = self._ranked(logits_BTE.detach().flatten(0, 1))[0], self.counted(context)
        weight_N = torch.ones(len(choice_NK), device=choice_NK.device) if counted_N is None else counted_N.float()
        loads_E = torch.zeros(self.num_experts, device=choice_NK.device)
        loads_E.scatter_add_(0, choice_NK.flatten(), weight_N.repeat_interleave(self.top_k))
        return assignment._replace(observed=loads_E)

    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Drops choices beyond the capacity; experts with fewer choices have empty slots."""
        choice_GSK, gate_GSK = self._ranked(logits_GSE)
        choice_GKS, gate_GKS = choice_GSK.transpose(1, 2), gate_GSK.transpose(1, 2)
        location_GKS = queue_locations(choice_GKS, self.num_experts)
        kept_GKS = choice_GKS.masked_fill(location_GKS >= capacity, -1)
        slots = fill_slots(kept_GKS, location_GKS, gate_GKS, self.num_experts, capacity)
        return GroupDecision(*slots, auxiliary_loss=self._loss(logits_GSE, choice_GSK))

    def choose(self, logits_GSE: Tensor) -> Choices:
        """Returns the k experts of every token; none is dropped."""
        choice_GSK, gate_GSK = self._ranked(logits_GSE)
        return Choices(choice_GSK.flatten(0, 1), gate_GSK.flatten(0, 1), self._loss(logits_GSE, choice_GSK))

    def counted_balance(self, logits_GSE: Tensor, counted_GS: Tensor) -> Tensor | None:
        """Returns the weighted balance loss over the tokens that count; None without a weight."""
        if not self.balance_loss_weight:
            return None
        return self._loss(logits_GSE, self._ranked(logits_GSE)[0], counted_GS)

    def _ranked(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the experts of each token and their gates, [..., K]."""
        score = affinity(logits, self.gating)
        if not isinstance(self.state, SelectionBias):
            gate, choice = score.topk(self.top_k, dim=-1)
            return choice, gate
        choice = (score + self.state.value_E).topk(self.top_k, dim=-1).indices
        return choice, score.gather(-1, choice)

    def _loss(self, logits_GSE: Tensor, choice_GSK: Tensor, counted_GS: Tensor | None = None) -> Tensor | None:
        """Returns the weighted balance loss over the scope of the config; None without a weight."""
        if not self.balance_loss_weight:
            return None
        if self.balance_scope != "group":
            logits_GSE, choice_GSK = logits_GSE.flatten(0, 1).unsqueeze(0), choice_GSK.flatten(0, 1).unsqueeze(0)
            counted_GS = None if counted_GS is None else counted_GS.view(1, -1)
        everywhere = self.balance_scope == "all" and self.training
        if counted_GS is not None:
            return self.balance_loss_weight * counted_balance_loss(logits_GSE, choice_GSK, counted_GS, everywhere)
        return self.balance_loss_weight * balance_loss(logits_GSE, choice_GSK, everywhere)
