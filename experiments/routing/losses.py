"""Balance losses, pure functions.

DeepSpeed's gates bring their own (GShard's and Switch's); this is DiT-MoE's (arXiv 2407.11633, equation 5):
sum_i (E / (K T) sum_t I(t chose i)) (1 / T sum_t P_i(t)), which is 1 at perfect balance.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balance_loss(logits_NE: Tensor, choice_NK: Tensor) -> Tensor:
    """Scalar float32. `choice_NK`: int64 experts that each token chose; the gradient flows through the softmax."""
    num_tokens, num_experts = logits_NE.shape
    counts_E = torch.zeros(num_experts, device=logits_NE.device).scatter_add_(
        0, choice_NK.reshape(-1), torch.ones(choice_NK.numel(), device=logits_NE.device)
    )
    fraction_E = counts_E * (num_experts / choice_NK.numel())
    return (fraction_E * logits_NE.softmax(dim=-1).mean(dim=0)).sum()
