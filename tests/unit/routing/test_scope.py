"""Tokens that compete over all processes: several processes choose exactly what one with all tokens chooses."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
import torch

from experiments.routing.scope import among_the_largest, mean_over_processes, num_processes
from tests.two_nodes import start_together
from tests.unit.routing import scope_worker


def test_one_process_chooses_the_largest_of_each_row() -> None:
    score_RN = torch.tensor([[3.0, 1.0, 2.0, 5.0], [-1.0, -4.0, -2.0, -3.0]])
    chosen_RN, least_R = among_the_largest(score_RN, 2)
    assert chosen_RN.tolist() == [[True, False, False, True], [True, False, True, False]]
    assert least_R.tolist() == [3.0, -2.0]
    assert num_processes() == 1


def test_among_equal_entries_the_first_are_chosen() -> None:
    chosen_RN, least_R = among_the_largest(torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0]]), 3)
    assert chosen_RN.tolist() == [[True, True, False, False, True]]
    assert least_R.tolist() == [1.0]


def test_of_fewer_entries_than_the_count_all_are_chosen() -> None:
    chosen_RN, least_R = among_the_largest(torch.tensor([[1.0, 2.0]]), 5)
    assert chosen_RN.tolist() == [[True, True]]
    assert least_R.tolist() == [1.0]


def test_the_choice_has_no_gradient_and_one_process_is_its_own_mean() -> None:
    score_RN = torch.randn(2, 4, requires_grad=True)
    chosen_RN, least_R = among_the_largest(score_RN, 2)
    assert not chosen_RN.requires_grad
    assert not least_R.requires_grad
    assert torch.equal(mean_over_processes(score_RN), score_RN.detach())


@pytest.fixture(scope="module", params=[2, 4])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two or four processes has found, by rank."""
    path = tmp_path_factory.mktemp("scope") / "answers.json"
    ended = start_together("tests.unit.routing.scope_worker:main", str(path), world=request.param).ends()
    assert [code for code, _ in ended] == [0] * request.param, ended[0][1][-3000:]
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process with all entries chooses."""
    found: dict[str, Any] = json.loads(json.dumps(scope_worker.found(0, 1)))
    return found


@pytest.mark.multi
def test_several_processes_choose_what_one_chooses(answers: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Also where a process has fewer entries than are chosen, and where entries are equal."""
    for case in (f"{name} {count}" for name in scope_worker.entries() for count in scope_worker.COUNTS):
        chosen = [list(chain(*(answer[case][0][row] for answer in answers))) for row in range(3)]
        assert chosen == alone[case][0], case
        assert all(answer[case][1] == alone[case][1] for answer in answers), case


@pytest.mark.multi
def test_routers_over_all_processes_decide_as_one_does(answers: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for name in scope_worker.ROUTERS:
        assert list(chain(*(answer[name][0] for answer in answers))) == alone[name][0], name
        for answer in answers:
            assert answer[name][1] == (alone[name][1] if alone[name][1] is None else pytest.approx(alone[name][1]))


@pytest.mark.multi
def test_a_loss_over_all_processes_has_the_gradient_of_the_whole_batch(
    answers: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    """Also where processes have unequally many tokens that count, and one of four has none."""
    for name in scope_worker.LOSSES:
        for answer in answers:
            torch.testing.assert_close(torch.tensor(answer[name]), torch.tensor(alone[name]), msg=name)
