"""Routing tables written by hand: 2 images x 3 tokens x 2 experts.

The router's weight is the identity, so the input is the logits; they are logarithms of the affinities below. Tokens
0 to 2 are the first image, 3 to 5 the second. A table lists each expert's (token, weight) in the order of its slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from experiments.layers.feed_forward import RoutedFeedForward
from experiments.routing.contract import Assignment

FIRST_EXPERT = [0.9, 0.6, 0.2, 0.8, 0.7, 0.1]
SECOND_EXPERT = [0.1, 0.4, 0.8, 0.2, 0.3, 0.9]
Table = list[list[tuple[int, float]]]


@pytest.fixture
def route(layer_of: Callable[..., RoutedFeedForward]) -> Callable[..., Assignment]:
    """The decision over the six tokens with these `routing` settings."""

    def decide(**routing: Any) -> Assignment:
        router = layer_of(width=2, num_experts=2, **routing).router
        torch.nn.init.eye_(router.weight_DE)
        logits_BTE = torch.tensor([FIRST_EXPERT, SECOND_EXPERT]).T.log().view(2, 3, 2)
        with torch.no_grad():
            assignment = router(logits_BTE)
        assert isinstance(assignment, Assignment)
        return assignment

    return decide


def table(assignment: Assignment, sort: bool = False) -> Table:
    """Tokens and weights in the filled slots of each expert."""
    filled_M = torch.ones_like(assignment.token_M) if assignment.filled_M is None else assignment.filled_M
    rows: Table = [[] for _ in range(assignment.logits_NE.shape[1])]
    slots = (each.tolist() for each in (assignment.expert_M, assignment.token_M, assignment.weight_M, filled_M))
    for expert, token, weight, filled in zip(*slots, strict=True):
        rows[expert] += [(token, round(weight, 6))] if filled else []
    return [sorted(row) for row in rows] if sort else rows


@pytest.mark.parametrize(
    ("group_images", "expected"),
    [
        (1, [[(0, 0.9), (3, 0.8)], [(2, 0.8), (5, 0.9)]]),
        (2, [[(0, 0.9), (3, 0.8), (4, 0.7)], [(1, 0.4), (2, 0.8), (5, 0.9)]]),
    ],
)
def test_expert_choice(route: Callable[..., Assignment], group_images: int, expected: Table) -> None:
    assignment = route(name="expert_choice", capacity_factor=1.0, group_images=group_images)
    assert table(assignment, sort=True) == expected
    assert assignment.filled_M is None
    assert assignment.auxiliary_loss is None


@pytest.mark.parametrize(
    ("group_images", "expected"),
    [
        # Two slots per image. Tokens 1 and 4 ask the second expert, 2 and 5 the first, when it is full already.
        (1, [[(0, 0.9), (1, 1.0), (3, 0.8), (4, 1.0)], [(2, 1.0), (0, 0.1), (5, 1.0), (3, 0.2)]]),
        # Three slots per batch. Token 4 comes too late for its first choice and for its second.
        (2, [[(0, 0.9), (1, 1.0), (3, 1.0)], [(2, 1.0), (5, 1.0), (0, 0.1)]]),
    ],
)
def test_token_choice(route: Callable[..., Assignment], group_images: int, expected: Table) -> None:
    assignment = route(name="token_choice", capacity_factor=1.0, group_images=group_images, balance_loss_weight=1.0)
    assert table(assignment) == expected
    # 2 [share of first choices x mean probability]: 2 (4/6 x 0.55 + 2/6 x 0.45)
    assert assignment.auxiliary_loss is not None
    assert float(assignment.auxiliary_loss) == pytest.approx(31 / 30)


@pytest.mark.parametrize("group_images", [1, 2])
def test_switch(route: Callable[..., Assignment], group_images: int) -> None:
    assignment = route(name="switch", capacity_factor=4 / 3, group_images=group_images, balance_loss_weight=1.0)
    assert table(assignment) == [[(0, 0.9), (1, 0.6), (3, 0.8), (4, 0.7)], [(2, 0.8), (5, 0.9)]]
    assert assignment.tokens_per_expert_E.tolist() == [4, 2]
    assert assignment.auxiliary_loss is not None
    assert float(assignment.auxiliary_loss) == pytest.approx(31 / 30)


@pytest.mark.parametrize(
    ("capacity_factor", "expected", "experts_per_token"),
    [
        (
            None,
            [
                [(0, 0.9), (1, 0.6), (3, 0.8), (4, 0.7), (2, 0.2), (5, 0.1)],
                [(2, 0.8), (5, 0.9), (0, 0.1), (1, 0.4), (3, 0.2), (4, 0.3)],
            ],
            [2, 2, 2, 2, 2, 2],
        ),
        (1.0, [[(0, 0.9), (1, 0.6), (3, 0.8)], [(2, 0.8), (5, 0.9), (0, 0.1)]], [2, 1, 1, 1, 0, 1]),
    ],
)
def test_shared_expert(
    route: Callable[..., Assignment], capacity_factor: float | None, expected: Table, experts_per_token: list[int]
) -> None:
    assignment = route(name="shared_expert", capacity_factor=capacity_factor, balance_loss_weight=1.0)
    assert table(assignment) == expected
    assert assignment.experts_per_token_N.tolist() == experts_per_token
    assert assignment.auxiliary_loss is not None
    assert float(assignment.auxiliary_loss) == pytest.approx(1.0)  # both experts are picked by every token
