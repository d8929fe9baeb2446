"""Soft MoE: every slot of an expert is a weighted mean of all tokens of an image, and nothing is chosen.

Puigcerver et al. 2023 (arXiv 2308.00951), algorithm 1. With the tokens X [T, d] of an image, and a vector for each of
p slots of E experts, Phi [d, E p]:

    L = X Phi;  D = softmax of L over the tokens;  C = softmax of L over the slots
    slots = D^T X;  Y = C FFN(slots), where expert e processes its slots e p to (e + 1) p - 1

As in section 2.3 each token and each column of Phi is divided by its l2 norm, and Phi is multiplied by a trained
scalar, so that softmaxes do not collapse to a single token as the model gets wider. This is done for L alone: the
slots mix the tokens as they are, as in the authors' code (google-research/vmoe, `projects/soft_moe/router.py`). D and
C are [T, E p] for each image: such a matrix is what soft MoE is, and its products are part of the router's FLOPs.

There are E p slots for an image, the largest multiple of E that is not above f_c times the tokens that training keeps;
so f_c has the unit that it has elsewhere. The slots are weights, so that their number stays where evaluation has
more tokens. No token is dropped and no loads are balanced, and no image changes another.

Every token reaches every expert, and that is what the statistics say: `Assignment` pairs each token with each expert,
where the weight of a pair is the sum of C over the slots of the expert. Its logits are those whose softmax over the
experts is this sum.

Legend: as in `contract.py`, with S slots of all experts for an image (E p).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.router_sizes import soft_slots
from experiments.config.schema import RunConfig
from experiments.routing.contract import Assignment, RoutingContext
from experiments.routing.mixture import Mixture
from experiments.routing.router import Router


class SoftRouter(Router):
    """The router of soft MoE, which mixes instead of choosing."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        width = config.model.width
        self.weight_DS = nn.Parameter(torch.empty(width, soft_slots(config)))
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.normal_(self.weight_DS, std=width**-0.5)

    def logits(self, x_BTD: Tensor, context: RoutingContext) -> Tensor:
        """Returns the scaled cosines of tokens and slots in float32, [B, T, S]."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            slot_DS = self.scale.float() * F.normalize(self.weight_DS.float(), dim=0)
            return F.normalize(x_BTD.float(), dim=-1) @ slot_DS

    def assign(self, logits_BTS: Tensor, x_BTD: Tensor, context: RoutingContext) -> Assignment:
        """Takes both softmaxes, and pairs each token with each expert."""
        num_images, num_tokens, num_slots = logits_BTS.shape
        mixture = Mixture(logits_BTS.softmax(dim=1), logits_BTS.softmax(dim=2), num_images * num_slots)
        by_expert = logits_BTS.detach().view(num_images * num_tokens, self.num_experts, -1)
        logits_NE = by_expert.logsumexp(dim=-1)
        return Assignment(
            token_M=torch.arange(num_images * num_tokens, device=logits_NE.device).repeat(self.num_experts),
            weight_M=logits_NE.softmax(dim=-1).T.flatten(),
            filled_M=None,
            slots_E=None,
            logits_NE=logits_NE,
            auxiliary_loss=None,
            mixture=mixture,
        )
