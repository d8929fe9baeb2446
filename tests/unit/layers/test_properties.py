"""Every router has every property that `ecdit check-router` tries, and a property that is broken is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.config.routers import choosing_names
from experiments.layers.properties import PROPERTIES, broken
from experiments.routing.contract import Assignment, GroupDecision, RoutingContext
from experiments.routing.expert_choice import ExpertChoiceRouter
from experiments.routing.router import Router
from experiments.routing.state import RunningThreshold


@pytest.mark.parametrize("name", choosing_names())
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


def leaks_the_batch(assign: Any, router: Router, logits_BTE: Tensor, x_BTD: Tensor, rest: RoutingContext) -> Assignment:
    """Lets the mean of the batch into every gate."""
    assignment = assign(router, logits_BTE, x_BTD, rest)
    return assignment._replace(weight_M=assignment.weight_M + x_BTD.mean())


def weighs_by_place(assign: Any, router: Router, logits_BTE: Tensor, x_BTD: Tensor, rest: RoutingContext) -> Assignment:
    """Weighs tokens by their place in the batch."""
    assignment = assign(router, logits_BTE, x_BTD, rest)
    return assignment._replace(weight_M=assignment.weight_M * assignment.token_M)


def reads_captions(assign: Any, router: Router, logits_BTE: Tensor, x_BTD: Tensor, rest: RoutingContext) -> Assignment:
    """Halves all gates where an image has no caption."""
    assignment = assign(router, logits_BTE, x_BTD, rest)
    return assignment._replace(weight_M=assignment.weight_M / (1 + rest.dropped_B.any()))


def counts_calls(assign: Any, router: Router, logits_BTE: Tensor, x_BTD: Tensor, rest: RoutingContext) -> Assignment:
    """Updates the state in the forward pass, so that recomputation and validation would move it."""
    assignment = assign(router, logits_BTE, x_BTD, rest)
    assert isinstance(router.state, RunningThreshold)
    router.state.update(torch.ones(4))
    return assignment


def forgets_a_pair(assign: Any, router: Router, logits_BTE: Tensor, x_BTD: Tensor, rest: RoutingContext) -> Assignment:
    """Leaves the last slot of the last expert out."""
    assignment = assign(router, logits_BTE, x_BTD, rest)
    slots_E = assignment.tokens_per_expert_E - torch.tensor([0, 0, 0, 1])
    return assignment._replace(token_M=assignment.token_M[:-1], weight_M=assignment.weight_M[:-1], slots_E=slots_E)


@pytest.mark.parametrize(
    ("name", "change", "title", "reason"),
    [
        ("expert_choice", forgets_a_pair, "every rule keeps the pairs that it plans", "63 pairs of token and expert"),
        ("expert_choice", leaks_the_batch, "in inference an image alone is as in a batch", "an image alone differs"),
        ("expert_choice", weighs_by_place, "images change places with their results", "the order of the images"),
        (
            "expert_choice", reads_captions, "images without a caption leave the routed experts alone",
            "a missing caption changes the result",
        ),
        ("diffmoe", counts_calls, "a forward pass changes no state", "router.state.value_K changes in training"),
        ("diffmoe", counts_calls, "recomputation gives the same gradients", "when a layer is computed again"),
    ],
)  # fmt: skip
def test_a_router_that_breaks_a_promise_is_found(
    name: str, change: Callable[..., Assignment], title: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign = ExpertChoiceRouter.assign
    monkeypatch.setattr(ExpertChoiceRouter, "assign", lambda *given: change(assign, *given))
    said = broken(name, PROPERTIES[title])
    assert said is not None
    assert reason in said


def test_a_state_that_is_cast_with_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunningThreshold, "_apply", torch.nn.Module._apply)
    said = broken("diffmoe", PROPERTIES["decisions are made in float32"])
    assert said == "router.state.value_K changes when the model is cast to bfloat16."


def test_an_unconditional_expert_that_takes_nothing_away_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.routing.router.without_tokens", lambda assignment, dropped_N: assignment)
    said = broken("promoe", PROPERTIES["images without a caption leave the routed experts alone"])
    assert said == "routed experts take tokens without a caption."
