"""DiT-MoE's balance loss."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from experiments.routing.losses import balance_loss


def test_perfect_balance_is_one() -> None:
    logits_GSE = torch.eye(4).repeat(2, 3, 1)  # 12 tokens of a group, each expert wanted most by three
    choice_GSK = torch.stack([torch.arange(12) % 4, (torch.arange(12) + 1) % 4], dim=1).repeat(2, 1, 1)
    assert_close(balance_loss(logits_GSE, choice_GSK), torch.tensor(1.0))


def test_everybody_at_one_expert_is_the_number_of_experts() -> None:
    logits_GSE = torch.tensor([100.0, 0.0, 0.0, 0.0]).expand(1, 6, 4)
    assert_close(balance_loss(logits_GSE, torch.zeros(1, 6, 1, dtype=torch.int64)), torch.tensor(4.0))


def test_it_is_the_formula_of_the_paper() -> None:
    """alpha sum_i (n / (K T) sum_t I(t chose i)) (1 / T sum_t P_i(t)), DiT-MoE equation 5, without alpha."""
    logits_SE = torch.randn(10, 4)
    choice_SK = logits_SE.topk(2).indices
    expected = 0.0
    for expert in range(4):
        chosen = sum(1 for token in range(10) if expert in choice_SK[token].tolist())
        probability = sum(float(logits_SE[token].softmax(0)[expert]) for token in range(10))
        expected += 4 / (2 * 10) * chosen * probability / 10
    assert_close(balance_loss(logits_SE[None], choice_SK[None]), torch.tensor(expected))


def test_groups_are_balanced_one_by_one() -> None:
    """Two groups that each crowd one expert are not balanced by each other."""
    logits_GSE = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]).expand(2, 5, 2)
    choice_GSK = torch.tensor([0, 1]).view(2, 1, 1).expand(2, 5, 1)
    assert float(balance_loss(logits_GSE, choice_GSK)) > 1.99


def test_the_gradient_lowers_the_logit_of_the_crowded_expert() -> None:
    logits_GSE = torch.zeros(1, 6, 3, requires_grad=True)
    balance_loss(logits_GSE, torch.zeros(1, 6, 1, dtype=torch.int64)).backward()
    assert logits_GSE.grad is not None
    assert logits_GSE.grad[..., 0].gt(0).all()
    assert logits_GSE.grad[..., 1:].lt(0).all()
