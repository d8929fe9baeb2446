"""A router that is not learned: each expert takes a fixed stripe of the image. A baseline for learned routing.

Expert e takes the C tokens of its routing group that begin at token e S / E; where stripes overlap (f_c > 1) a token
has several experts. The gates are the affinities, as in expert choice: they are learned, and the choice is not.

    ecdit check-router stripes --plugin stripes.py
    ecdit train routing=stripes --plugin stripes.py

Legend: G routing groups, S tokens of a group, E experts, C slots of an expert in a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.routers import Fixed, RouterRow
from experiments.routing.contract import GroupDecision
from experiments.routing.logits import affinity
from experiments.routing.router import Router


class StripesRouter(Router):
    """Decides by the place of a token in its group alone."""

    def decide(self, logits_GSE: Tensor, capacity: int) -> GroupDecision:
        """Fills every slot, so that no `filled_GEC` is needed, nor a loss that balances the experts."""
        num_groups, size, num_experts = logits_GSE.shape
        first_E1 = torch.arange(num_experts, device=logits_GSE.device).unsqueeze(1) * size // num_experts
        token_EC = (first_E1 + torch.arange(capacity, device=logits_GSE.device)) % size
        token_GEC = token_EC.expand(num_groups, -1, -1)
        weight_GEC = affinity(logits_GSE, "softmax").transpose(1, 2).gather(2, token_GEC)
        return GroupDecision(token_GEC, weight_GEC, filled_GEC=None, auxiliary_loss=None)


ROUTERS = [
    RouterRow(
        "stripes",
        label="Stripes",
        implementation=StripesRouter,
        source="a baseline, like the fixed hashes of Roller et al. 2021, arXiv 2106.04426",
        capacity_factor=2.0,
        group_images=1,
        fixed={"gating": Fixed("softmax", "is not what {name} reads.")},
    )
]
