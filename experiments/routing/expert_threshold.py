"""Expert threshold: an expert takes every token whose logit reaches the expert's running threshold.

Expert threshold routing (arXiv 2603.11535, equation 6 and algorithm 1): tau_e is the running mean of the k-th largest
logit r_.e of a batch of N tokens, k = N f_c / E, and expert e takes token n where r_ne >= tau_e, in training and in
inference alike; the gate is sigmoid(r_ne). No token competes with another, so that there is no gap between training and
inference and no loss of balance is needed; the compute of a batch varies, and is f_c experts per token on average. An
expert whose threshold lags behind rising logits takes too much, and one whose logits fall can starve. As in the paper
experts therefore compete at first, by the k-th largest logit of the batch itself (`routing.threshold_warmup_images`;
the paper takes 4,000 of about 20,000 steps). The paper's bounds on the load of an expert, 0.5 k and 1.5 k in training,
are left out: they keep memory within limits and hardly act after the warm start.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import Assignment, Pairs, RoutingContext, sort_pairs
from experiments.routing.logits import affinity
from experiments.routing.router import Router
from experiments.routing.state import RunningThreshold


class ExpertThresholdRouter(Router):
    """A router in which each token is compared with the thresholds of all experts."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.gating = config.routing.gating
        self.state = RunningThreshold(config.routing.num_experts, config.routing.threshold_decay)
        self.competing_images = config.routing.threshold_warmup_images

    def assign(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        """Compares all logits with the thresholds, or during the warm start with the k-th largest of the batch."""
        logits_NE, factor = logits_BTE.flatten(0, 1), self.factor()
        assert factor is not None, "the quantile follows from f_c"
        count = max(1, min(len(logits_NE), round(len(logits_NE) * factor / self.num_experts)))
        quantile_E = logits_NE.detach().topk(count, dim=0).values[-1]
        assert isinstance(self.state, RunningThreshold)
        threshold_E = torch.where(self.state.num_updates == 0, quantile_E, self.state.value_K)
        if self.competes and self.images_seen < self.competing_images:
            threshold_E = quantile_E
        pairs = Pairs(logits_NE >= threshold_E, affinity(logits_NE, self.gating))
        assignment = sort_pairs(pairs, logits_NE, round(len(logits_NE) * factor))
        return assignment._replace(observed=quantile_E) if self.training else assignment
