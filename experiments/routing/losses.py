"""The auxiliary losses of routers, as pure functions of logits and decisions; `router.py` weighs and adds them.

DeepSpeed's gates bring GShard's and Switch's balance losses of their own. Gradients flow through probabilities and
logits alone, since decisions and counts have none.

`counted` is a mask of the tokens that a loss is taken over (`Router.counted`); None stands for all. Processes can have
unequally many of them. A mean is therefore divided by the mean of their numbers over processes, so that the mean of the
gradients over processes is the gradient over the tokens of all. This is collective.

Legend: as in `contract.py`, with K choices of each token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.routing.scope import mean_over_processes

CONTRASTIVE_TEMPERATURE = 0.07
"""The temperature of the routing contrastive loss in ProMoE's public code and paper (arXiv 2510.24711)."""
_LEAST = 1e-6
"""A divisor for sums of counts that are 0; means of counts over processes can be below 1."""


def balance_loss(logits_GSE: Tensor, choice_GSK: Tensor, everywhere: bool = False) -> Tensor:
    """Returns DiT-MoE's balance loss (arXiv 2407.11633, equation 5) as a float32 scalar, the mean over groups.

    It is sum_i (E / (K S) sum_t I(t chose i)) (1 / S sum_t P_i(t)), which is 1 at perfect balance. `choice_GSK` holds
    the experts, int64, that each token chose, dropped or not. P is the softmax of the logits, whatever function yields
    the gates. With `everywhere` the shares of the choices are those of all processes, which is the loss over their
    whole batch (arXiv 2501.11873): the mean of the gradients over processes is then its gradient.
    """
    num_groups, _, num_experts = logits_GSE.shape
    choice_GM = choice_GSK.flatten(1)
    share_GE = torch.zeros(num_groups, num_experts, device=logits_GSE.device)
    share_GE.scatter_add_(1, choice_GM, torch.full_like(choice_GM, 1, dtype=share_GE.dtype))
    share_GE *= num_experts / choice_GM.shape[1]
    if everywhere:
        share_GE = mean_over_processes(share_GE)
    return (share_GE * logits_GSE.softmax(dim=-1).mean(dim=1)).sum(dim=1).mean()


def counted_balance_loss(
    logits_GSE: Tensor, choice_GSK: Tensor, counted_GS: Tensor, everywhere: bool = False
) -> Tensor:
    """Returns `balance_loss` over the tokens that count, as if each group held no others; the mean over such groups."""
    num_groups, _, num_experts = logits_GSE.shape
    num_choices = choice_GSK.shape[2]
    counted_GS1 = counted_GS.float().unsqueeze(-1)
    share_GE = torch.zeros(num_groups, num_experts, device=logits_GSE.device)
    share_GE.scatter_add_(1, choice_GSK.flatten(1), counted_GS1.expand(-1, -1, num_choices).flatten(1))
    number_G1 = counted_GS1.sum(dim=1)
    if everywhere:
        share_GE, number_G1 = mean_over_processes(share_GE), mean_over_processes(number_G1)
    divisor_G1 = number_G1.clamp_min(_LEAST)
    share_GE = share_GE * num_experts / (num_choices * divisor_G1)
    p_GE = (logits_GSE.softmax(dim=-1) * counted_GS1).sum(dim=1) / divisor_G1
    return _mean((share_GE * p_GE).sum(dim=1), number_G1.squeeze(1) > 0)


def z_loss(logits_NE: Tensor, counted_N: Tensor | None = None) -> Tensor:
    """Returns the router z-loss, the mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, equation 5)."""
    return _mean(logits_NE.logsumexp(dim=-1).square(), counted_N)


def similarity_loss(
    logits_NE: Tensor, chosen_NE: Tensor, everywhere: bool = False, counted_N: Tensor | None = None
) -> Tensor:
    """Returns the router similarity loss of Expert Race (arXiv 2503.16057, section 4.2).

    With P the softmax of the logits and M the decision, P' = P^T P and M' = M^T M, the loss is (1/N) sum_ij W_ij P'_ij,
    where W_ii = E M'_ii / sum_j M'_jj and W_ij = (E^2 - E) M'_ij / sum_{a != b} M'_ab: on average 1 on the diagonal and
    off it. Without any token that has two experts the sum off the diagonal is 0, and so is its part of the loss. With
    `everywhere` M' is that of all processes, as in `balance_loss`.
    """
    num_tokens, num_experts = logits_NE.shape
    number: Tensor | int = num_tokens
    p_NE, m_NE = logits_NE.softmax(dim=-1), chosen_NE.to(logits_NE.dtype)
    if counted_N is not None:
        p_NE, m_NE = p_NE * counted_N.unsqueeze(1), m_NE * counted_N.unsqueeze(1)
        number = _number(counted_N)
    p_EE, m_EE = p_NE.T @ p_NE, m_NE.T @ m_NE
    if everywhere:
        m_EE = mean_over_processes(m_EE)
    m_E = m_EE.diagonal()
    off_EE = m_EE - m_E.diag()
    weight_EE = (num_experts**2 - num_experts) * off_EE / off_EE.sum().clamp_min(_LEAST)
    weight_EE = weight_EE + (num_experts * m_E / m_E.sum().clamp_min(_LEAST)).diag()
    return (weight_EE * p_EE).sum() / number


def contrastive_loss(x_GSD: Tensor, prototype_DE: Tensor, chosen_GSE: Tensor) -> Tensor:
    """Returns ProMoE's routing contrastive loss (arXiv 2510.24711, section 3.3), InfoNCE over the active experts.

    The centroid of an expert is the mean of its tokens in a group; its prototype shall be nearer, by cosine over the
    temperature, to its own centroid than to those of the others. The result is the mean over all active experts of all
    groups: the public code takes the batch as the group where tokens choose, and an image where experts choose. A token
    that chose several experts counts for each of them, which is an option of the public code. In a group with fewer
    than two active experts there is nothing to contrast; without any other group the loss is 0.
    """
    m_GSE = chosen_GSE.float()
    count_GE = m_GSE.sum(dim=1)
    active_GE = count_GE > 0
    centroid_GED = (m_GSE.mT @ x_GSD.float()) / count_GE.clamp_min(1).unsqueeze(-1)
    # One row for each prototype and one column for each centroid.
    similarity_GEE = F.normalize(prototype_DE.float(), dim=0).T @ F.normalize(centroid_GED, dim=-1).mT
    # Where no expert is active nothing is masked, as the gradient of an empty sum of exponentials would be NaN.
    masked_GE = ~active_GE & active_GE.any(dim=1, keepdim=True)
    logits_GEE = (similarity_GEE / CONTRASTIVE_TEMPERATURE).masked_fill(masked_GE.unsqueeze(1), float("-inf"))
    own_GE = similarity_GEE.diagonal(dim1=1, dim2=2) / CONTRASTIVE_TEMPERATURE
    log_p_GE = logits_GEE.logsumexp(dim=-1) - own_GE
    counted_GE = active_GE & (active_GE.sum(dim=1, keepdim=True) > 1)
    return torch.where(counted_GE, log_p_GE, torch.zeros_like(log_p_GE)).sum() / counted_GE.sum().clamp_min(1)


def prediction_loss(prediction_NE: Tensor, chosen_NE: Tensor, counted_N: Tensor | None = None) -> Tensor:
    """Returns the binary cross-entropy of the capacity predictor (DiffMoE, arXiv 2503.14487), the mean over entries."""
    target_NE = chosen_NE.to(prediction_NE.dtype)
    if counted_N is None:
        return F.binary_cross_entropy_with_logits(prediction_NE, target_NE)
    return _mean(F.binary_cross_entropy_with_logits(prediction_NE, target_NE, reduction="none").mean(dim=1), counted_N)


def _mean(values_N: Tensor, counted_N: Tensor | None) -> Tensor:
    """Returns the mean of those values that count; 0 where none does."""
    return values_N.mean() if counted_N is None else (values_N * counted_N).sum() / _number(counted_N)


def _number(counted_N: Tensor) -> Tensor:
    """Returns how many values count, as the mean over processes: a divisor, which is not 0 where none does."""
    return mean_over_processes(counted_N.sum(dtype=torch.float32)).clamp_min(_LEAST)
