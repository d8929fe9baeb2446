"""Expert choice: each expert takes the C = S f_c / E tokens of a group with the highest affinity to it.

EC-DIT (arXiv 2410.02098), equations 5 to 8, after Zhou et al. 2022 (arXiv 2202.09368): softmax over experts in float32,
top-C over tokens, raw affinities as gates, no auxiliary loss, since every expert is full by construction. A token may
be taken by many experts or by none. What other papers change is a setting:

- `routing.gating` swaps the softmax (Expert Race, arXiv 2503.16057, table 1; MoMa's sigmoid, arXiv 2407.21770).
- `routing.group_images` is the scope: an image, several, the batch of a process (DiffMoE, arXiv 2503.14487) or all.
- `routing.capacity_schedule` lets C follow the noise level: C(t) = C (a + (1 - a) u / E[u]) with a = 0.4 and u = 1 - t
  for `low_noise`, u = t for `high_noise` (EC-DLM, arXiv 2604.01622). Its public runs compare a fixed k of 20 with a k
  that is linear from 8 to 32. The mean over training is C, so that arms spend the same.
- `routing.eval_decision` replaces competition outside training, so that an image alone is served as in a batch:
  expert e takes token n where s_ne >= tau_e (`threshold`), or where sigmoid(c_ne) >= tau_e with the prediction c_n =
  W2 SiLU(W1 sg(x_n)) (`predictor`, DiffMoE, equations 8 to 10; its public code ranks by s again, over the whole batch,
  and adds biases to W1 and W2). tau_e is the running mean of the smallest value that expert e took in training.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.objectives import OBJECTIVES
from experiments.config.schema import RunConfig
from experiments.routing.contract import Assignment, GroupDecision, Pairs, RoutingContext, sort_pairs
from experiments.routing.logits import affinity
from experiments.routing.losses import prediction_loss
from experiments.routing.router import Router
from experiments.routing.scope import among_the_largest, num_processes
from experiments.routing.state import RunningThreshold

PADDING_LOGIT = -1e30
"""Marks the padding of captions, which is ranked behind every token."""
BEHIND_ALL_LOGITS = -1e4
"""The affinity of padding where logits are affinities; softmax and sigmoid are positive, so that there it is 0."""
LEAST_SHARE = 0.4
"""The share of the mean capacity that every noise level has: 8 / 20 in EC-DLM's public runs."""


class CapacityPredictor(nn.Module):
    """Predicts from a token which experts would take it. No gradient reaches the token."""

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(width, width, bias=False)
        self.w_out = nn.Linear(width, num_experts, bias=False)
        for layer in (self.w_in, self.w_out):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Returns float32 logits [N, E] of being taken."""
        with torch.autocast(x_ND.device.type, enabled=False):
            hidden_ND = F.silu(x_ND.detach().float() @ self.w_in.weight.float().T)
            return hidden_ND @ self.w_out.weight.float().T


class ExpertChoiceRouter(Router):
    """The router of EC-DIT, in which experts choose tokens, and its descendants."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        routing = config.routing
        self.gating, self.eval_decision = routing.gating, routing.eval_decision
        self.schedule = routing.capacity_schedule
        self.mean_time = OBJECTIVES[config.flow.objective].mean_time(config.flow)
        self.predictor_loss_weight = routing.predictor_loss_weight
        self.predictor: CapacityPredictor | None = None
        if routing.predictor_loss_weight:
            self.predictor = CapacityPredictor(config.model.width, routing.num_experts)
        if routing.eval_decision != "same":
            self.state = RunningThreshold(routing.num_experts, routing.threshold_decay)

    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Fills every slot of every expert; the order of an expert's slots has no meaning."""
        # Logits are transposed first: on CPUs a softmax over rows of 8 numbers takes 6 times as long as over columns.
        affinity_GES = self._affinity(logits_GSE.transpose(1, 2), dim=1)
        weight_GEC, token_GEC = affinity_GES.topk(capacity, dim=-1, sorted=False)
        return GroupDecision(token_GEC, weight_GEC, filled_GEC=None, auxiliary_loss=None)

    def assign(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        """Decides by competition, or outside training by thresholds where the config asks for them.

        Before the first step there are none yet, and competition decides there too: at 0, all tokens would be taken.
        Where text tokens are routed, padding takes a slot only after every real token, and its output is 0.
        """
        if context.real_BT is None:
            return self._assign(logits_BTE, x_BTD, context)
        marked_BTE = logits_BTE.masked_fill(~context.real_BT.unsqueeze(-1), PADDING_LOGIT)
        assignment = self._assign(marked_BTE, x_BTD, context)
        real_M = context.real_BT.flatten()[assignment.token_M]
        return assignment._replace(weight_M=assignment.weight_M.masked_fill(~real_M, 0.0))

    def _assign(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        assert self.state is None or isinstance(self.state, RunningThreshold)
        if self.state is not None and not self.competes and self.state.has_begun:
            return self._above_thresholds(logits_BTE, x_BTD, context)
        if self.schedule != "none":
            assignment = self._by_noise(logits_BTE, context.time_B)
        elif self.group_images == "all" and self.training and num_processes() > 1:
            assignment = self._everywhere(logits_BTE)
        else:
            assignment = super().assign(logits_BTE, x_BTD, context)
        return self._with_prediction(assignment, logits_BTE, x_BTD, context) if self.training else assignment

    def _above_thresholds(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        logits_NE = logits_BTE.flatten(0, 1)
        weight_NE = self._affinity(logits_NE)
        score_NE = weight_NE
        if self.eval_decision == "predictor":
            assert self.predictor is not None
            score_NE = _probability(self.predictor(x_BTD.flatten(0, 1)), context)
        assert isinstance(self.state, RunningThreshold)
        return sort_pairs(Pairs(score_NE >= self.state.value_K, weight_NE), logits_NE, self._planned(len(logits_NE)))

    def _by_noise(self, logits_BTE: Tensor, time_B: Tensor) -> Assignment:
        """Lets every image have its own number of slots, at least one and at most all of its tokens."""
        num_tokens, factor = logits_BTE.shape[1], self.factor()
        assert factor is not None
        level_B, mean = (1 - time_B, 1 - self.mean_time) if self.schedule == "low_noise" else (time_B, self.mean_time)
        share_B = LEAST_SHARE + (1 - LEAST_SHARE) / mean * level_B
        capacity_B = (share_B * (num_tokens * factor / self.num_experts)).round().clamp(1, num_tokens)
        weight_BTE = self._affinity(logits_BTE)
        # The rank of each token among those of its image, from 0 for the largest affinity.
        rank_BTE = weight_BTE.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen_NE = (rank_BTE < capacity_B.view(-1, 1, 1)).flatten(0, 1)
        pairs = Pairs(chosen_NE, weight_BTE.flatten(0, 1))
        return sort_pairs(pairs, logits_BTE.flatten(0, 1), self._planned(len(chosen_NE)))

    def _everywhere(self, logits_BTE: Tensor) -> Assignment:
        """Lets each expert take the best tokens of all processes together. Collective."""
        logits_NE = logits_BTE.flatten(0, 1)
        weight_NE, (num_images, num_tokens, _) = self._affinity(logits_NE), logits_BTE.shape
        capacity = self.capacity(num_images * num_processes(), num_tokens)
        chosen_EN, least_E = among_the_largest(weight_NE.T, capacity)
        assignment = sort_pairs(Pairs(chosen_EN.T, weight_NE), logits_NE, self._planned(len(logits_NE)))
        return assignment._replace(observed=least_E if self.eval_decision == "threshold" else None)

    def _with_prediction(
        self, assignment: Assignment, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext
    ) -> Assignment:
        """Adds what the thresholds learn from this batch, and the loss of the predictor."""
        score_NE = None
        if self.predictor is not None:
            prediction_NE = self.predictor(x_BTD.flatten(0, 1))
            loss = prediction_loss(prediction_NE, assignment.chosen_NE, self.counted(context))
            assignment = assignment._replace(auxiliary_loss=self.predictor_loss_weight * loss)
            score_NE = _probability(prediction_NE.detach(), context)
        if self.state is None or assignment.observed is not None:
            return assignment
        if self.eval_decision == "threshold" or score_NE is None:
            score_NE = self._affinity(logits_BTE.detach().flatten(0, 1))
        slots = max(1, assignment.token_M.shape[0] // self.num_experts)
        if self.has_unconditional:
            return assignment._replace(observed=self._least_with_caption(score_NE, slots, context.dropped_B))
        return assignment._replace(observed=score_NE.topk(slots, dim=0).values[-1])

    def _least_with_caption(self, score_NE: Tensor, slots: int, dropped_B: Tensor) -> Tensor:
        """Returns the smallest value that each expert takes of images with a caption, [E], where a group is one image.

        `slots` are those of an expert over all images.
        """
        assert isinstance(self.state, RunningThreshold)
        kept_B = self.state.learns_from(dropped_B)
        left_out_N = ~kept_B.repeat_interleave(len(score_NE) // len(kept_B))
        value_NE = score_NE.masked_fill(left_out_N.unsqueeze(1), float("-inf")).sort(dim=0, descending=True).values
        last = (slots // len(kept_B) * kept_B.sum() - 1).clamp_min(0)
        return torch.where(kept_B.any(), value_NE.index_select(0, last.view(1))[0], self.state.value_K)

    def _affinity(self, logits: Tensor, dim: int = -1) -> Tensor:
        """Returns affinities over the experts (`dim`), of which those of marked padding are the smallest."""
        weight = affinity(logits, self.gating, dim)
        if not self.is_text:
            return weight
        return weight.masked_fill(logits <= PADDING_LOGIT, BEHIND_ALL_LOGITS if self.gating == "identity" else 0.0)

    def _planned(self, num_tokens: int) -> int:
        """Returns the number of pairs that f_c plans for."""
        factor = self.factor()
        assert factor is not None
        return round(num_tokens * factor)


def _probability(prediction_NE: Tensor, context: RoutingContext) -> Tensor:
    """Returns the predicted probabilities of being taken, [N, E], which are 0 at the padding of captions."""
    p_NE = prediction_NE.sigmoid()
    return p_NE if context.real_BT is None else p_NE.masked_fill(~context.real_BT.reshape(-1, 1), 0.0)
