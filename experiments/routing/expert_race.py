"""Expert race: the K = S f_c pairs of token and expert with the highest scores win, over all tokens and experts.

Expert Race (arXiv 2503.16057), section 3: scores S = GELU(x W1) W2 without a further activation, the scores are the
gates too. Neither a token nor an expert has a fixed number of partners, so that compute goes where scores are high in
both directions. Pairs compete over the batch of all processes (`routing.group_images=all`), of one, or of some images.
Outside training a pair wins where its score reaches tau, the running mean of the smallest winning score, which needs no
other image. Without a router similarity loss few experts win (section 4.2). The paper's losses on intermediate layers
are not part of the router and are left out.

Legend: as in `contract.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.routing.contract import Assignment, Pairs, RoutingContext, sort_pairs
from experiments.routing.logits import affinity
from experiments.routing.router import Router
from experiments.routing.scope import among_the_largest, num_processes
from experiments.routing.state import RunningThreshold


class ExpertRaceRouter(Router):
    """The router of Race-DiT, in which pairs of token and expert compete with all others."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        routing = config.routing
        self.gating = routing.gating
        if routing.eval_decision == "threshold":
            self.state = RunningThreshold(1, routing.threshold_decay)

    def assign(self, logits_BTE: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        """Lets the pairs of each group compete, or outside training compares them with the threshold.

        Before the first step there is none, and pairs compete there too.
        """
        weight_BTE, (num_images, num_tokens, num_experts) = affinity(logits_BTE, self.gating), logits_BTE.shape
        factor = self.factor()
        assert factor is not None, "a race has a number of winners"
        planned, observed = round(num_images * num_tokens * factor), None
        assert self.state is None or isinstance(self.state, RunningThreshold)
        if self.state is not None and not self.competes and self.state.has_begun:
            chosen_BTE = weight_BTE >= self.state.value_K
        else:
            group = self._images_per_group(num_images)
            everywhere = self.group_images == "all" and self.training
            parts = [
                _winners(part_BTE, group, factor, everywhere)
                for part_BTE in torch.split(weight_BTE, num_images - num_images % group)
            ]
            chosen_BTE = torch.cat([chosen for chosen, _ in parts])
            if self.state is not None and self.training:
                observed = self._observed(parts[0][1], context.dropped_B)
        pairs = Pairs(chosen_BTE.view(-1, num_experts), weight_BTE.flatten(0, 1))
        return sort_pairs(pairs, logits_BTE.flatten(0, 1), planned)._replace(observed=observed)

    def _observed(self, least_G: Tensor, dropped_B: Tensor) -> Tensor:
        """Returns the mean of the smallest winning scores of the groups.

        Beside an unconditional expert a group is one image, and those without a caption are left out.
        """
        assert isinstance(self.state, RunningThreshold)
        if not self.has_unconditional:
            return least_G.mean().view(1)
        kept_B = self.state.learns_from(dropped_B)
        mean = (least_G * kept_B).sum() / kept_B.sum().clamp_min(1)
        return torch.where(kept_B.any(), mean, self.state.value_K)


def _winners(weight_BTE: Tensor, group: int, factor: float, everywhere: bool) -> tuple[Tensor, Tensor]:
    """Returns the winning pairs, bool [B, T, E], and the smallest winning score of each group."""
    group = min(group, len(weight_BTE))
    weight_GP = weight_BTE.reshape(len(weight_BTE) // group, -1)
    if everywhere:
        tokens = weight_BTE.shape[0] * weight_BTE.shape[1] * num_processes()
        chosen_GP, least_G = among_the_largest(weight_GP, max(1, round(tokens * factor)))
    else:
        count = max(1, round(group * weight_BTE.shape[1] * factor))
        value_GK, place_GK = weight_GP.detach().topk(count, dim=1)
        chosen_GP = torch.zeros_like(weight_GP, dtype=torch.bool).scatter_(1, place_GK, True)
        least_G = value_GK[:, -1]
    return chosen_GP.view_as(weight_BTE), least_G
