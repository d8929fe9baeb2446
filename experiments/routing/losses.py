"""The balance loss of DiT-MoE, as a pure function.

DeepSpeed's gates bring GShard's and Switch's losses of their own. DiT-MoE's (arXiv 2407.11633, equation 5) is
sum_i (E / (K S) sum_t I(t chose i)) (1 / S sum_t P_i(t)), which is 1 at perfect balance.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balance_loss(logits_GSE: Tensor, choice_GSK: Tensor) -> Tensor:
    """Returns the balance loss as a float32 scalar, the mean over groups.

    `choice_GSK` holds the experts, int64, that each token chose, dropped or not. P is the softmax of the logits,
    whatever function yields the gates; the gradient flows through P alone, as counts have none.
    """
    num_groups, _, num_experts = logits_GSE.shape
    choice_GM = choice_GSK.flatten(1)
    share_GE = torch.zeros(num_groups, num_experts, device=logits_GSE.device)
    share_GE.scatter_add_(1, choice_GM, torch.full_like(choice_GM, 1, dtype=share_GE.dtype))
    share_GE *= num_experts / choice_GM.shape[1]
    return (share_GE * logits_GSE.softmax(dim=-1).mean(dim=1)).sum(dim=1).mean()
