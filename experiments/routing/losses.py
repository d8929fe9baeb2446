"""Balance losses, pure functions.

DeepSpeed's gates bring their own (GShard's and Switch's); this is DiT-MoE's (arXiv 2407.11633, equation 5):
sum_i (E / (K S) sum_t I(t chose i)) (1 / S sum_t P_i(t)), which is 1 at perfect balance.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balance_loss(logits_GSE: Tensor, choice_GSK: Tensor) -> Tensor:
    """Scalar float32, the mean over groups.

    `choice_GSK`: int64 experts that each token chose, dropped or not. P is the softmax of the logits, whatever the
    gates are, and the gradient flows through it alone.
    """
    num_groups, _, num_experts = logits_GSE.shape
    choice_GM = choice_GSK.flatten(1)
    share_GE = torch.zeros(num_groups, num_experts, device=logits_GSE.device)
    share_GE.scatter_add_(1, choice_GM, torch.full_like(choice_GM, 1, dtype=share_GE.dtype))
    share_GE *= num_experts / choice_GM.shape[1]
    return (share_GE * logits_GSE.softmax(dim=-1).mean(dim=1)).sum(dim=1).mean()
