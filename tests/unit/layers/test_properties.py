"""Every router has every property that `ecdit check-router` tries, and a property that is broken is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.routers import routed_names
from experiments.layers.properties import PROPERTIES, broken
from experiments.routing.contract import GroupDecision
from experiments.routing.expert_choice import ExpertChoiceRouter


@pytest.mark.parametrize("name", routed_names())
@pytest.mark.parametrize("title", PROPERTIES)
def test_every_router_has_every_property(name: str, title: str) -> None:
    PROPERTIES[title](name)


def other_groups(decide: Any, logits_GSE: Tensor, capacity: int) -> GroupDecision:
    """The first image decides for all: what expert choice over a batch would leak."""
    return decide(logits_GSE[:1].expand_as(logits_GSE), capacity)


def detached(decide: Any, logits_GSE: Tensor, capacity: int) -> GroupDecision:
    return decide(logits_GSE.detach(), capacity)


def noisy(decide: Any, logits_GSE: Tensor, capacity: int) -> GroupDecision:
    return decide(logits_GSE + torch.randn_like(logits_GSE), capacity)


def twice(decide: Any, logits_GSE: Tensor, capacity: int) -> GroupDecision:
    decision = decide(logits_GSE, capacity)
    return GroupDecision(torch.zeros_like(decision.token_GEC), decision.weight_GEC, None, None)


def halved(decide: Any, logits_GSE: Tensor, capacity: int) -> GroupDecision:
    decision = decide(logits_GSE, capacity)
    return GroupDecision(decision.token_GEC, decision.weight_GEC / 2, None, None)


def narrow(decide: Any, logits_GSE: Tensor, capacity: int) -> GroupDecision:
    decision = decide(logits_GSE, capacity)
    return GroupDecision(decision.token_GEC, decision.weight_GEC.bfloat16(), None, None)


@pytest.mark.parametrize(
    ("change", "title", "reason"),
    [
        (narrow, "answers have the shapes of the contract", "weight_M is not torch.float32"),
        (halved, "one expert with full capacity is the dense layer", "the output differs from the dense layer's"),
        (twice, "no expert gets more tokens than it has slots", "an expert has a token twice"),
        (detached, "gradients reach every parameter", "no gradient reaches router.weight_DE in training"),
        (other_groups, "in groups of one no image changes another", "replacing the first image changes the results"),
        (noisy, "the same input gives the same bits", "outputs differ in training"),
        (noisy, "a loaded layer continues with the same bits", "the outputs of the loaded layer differ"),
    ],
)
def test_a_broken_property_is_found(
    change: Callable[..., GroupDecision], title: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = ExpertChoiceRouter.decide
    monkeypatch.setattr(
        ExpertChoiceRouter, "decide", lambda self, *given: change(lambda *inner: decide(self, *inner), *given)
    )
    said = broken("expert_choice", PROPERTIES[title])
    assert said is not None
    assert reason in said
