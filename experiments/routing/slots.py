"""Conversion of token choice into slots: each token names its experts, and each expert's slots name their tokens.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fill_slots(
    expert_GKS: Tensor, location_GKS: Tensor, weight_GKS: Tensor, num_experts: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns choices into (token_GEC, weight_GEC, filled_GEC).

    `expert_GKS` is -1 where a choice was dropped; `location_GKS` is the slot of each choice among those of its expert.
    Dropped choices are scattered to one scratch slot past the end, which is cut off.
    """
    num_groups, num_choices, size = expert_GKS.shape
    last, device = num_experts * capacity, expert_GKS.device
    slot_GKS = torch.where(expert_GKS >= 0, expert_GKS.long() * capacity + location_GKS.long(), last)
    slot_GM = slot_GKS.reshape(num_groups, -1)
    token_GM = torch.arange(size, device=device).repeat(num_groups, num_choices)
    shape = (num_groups, last + 1)
    # Empty slots compute some token and add it with weight 0. Their tokens differ, because one program sums all slots
    # of a token, and would take long for one that fills all empty slots.
    token_GC = (torch.arange(last + 1, device=device) % size).repeat(num_groups, 1).scatter(1, slot_GM, token_GM)
    weight_GC = weight_GKS.new_zeros(shape).scatter(1, slot_GM, weight_GKS.reshape(num_groups, -1))
    filled_GC = torch.zeros(shape, dtype=torch.bool, device=device).scatter(1, slot_GM, True)
    token_GEC, weight_GEC, filled_GEC = (
        flat[:, :last].reshape(num_groups, num_experts, capacity) for flat in (token_GC, weight_GC, filled_GC)
    )
    return token_GEC, weight_GEC, filled_GEC


def queue_locations(choice_GKS: Tensor, num_experts: int) -> Tensor:
    """Returns the place of each choice in its expert's queue: all first choices in token order, then all second."""
    num_groups, num_choices, size = choice_GKS.shape
    flat = choice_GKS.reshape(num_groups, -1)
    one_hot = torch.zeros(num_groups, flat.shape[1], num_experts, dtype=torch.int32, device=flat.device)
    one_hot.scatter_(2, flat.unsqueeze(-1), 1)
    # The running count of an expert's choices, read at a choice, is one more than the number of those before it.
    place = one_hot.cumsum(dim=1).gather(2, flat.unsqueeze(-1)).squeeze(-1) - 1
    return place.view(num_groups, num_choices, size)
