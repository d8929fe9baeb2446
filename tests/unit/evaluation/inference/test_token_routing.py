"""A tally is what a loop over tokens and experts would count."""

import math

import pytest
import torch

from experiments.evaluation.inference.token_routing import TokenTally, branch_pairs_B2, entropy_BT, processed_BTE
from experiments.records.routing_map_row import RoutingMapRow
from experiments.routing.contract import Assignment

EMPTY = RoutingMapRow(
    images_seen=1, weights="ema", source="samples", num_images=2, layer=0, time=None, load=[], entropy=0,
    dropped_share=0, experts_per_token=[],
)  # fmt: skip

# Two images of three tokens, two experts of three slots; the last slot of expert 1 is empty and points at token 0.
ASSIGNMENT = Assignment(
    token_M=torch.tensor([0, 1, 3, 1, 5, 0]),
    weight_M=torch.ones(6),
    filled_M=torch.tensor([True, True, True, True, True, False]),
    slots_E=None,
    logits_NE=torch.tensor([[0.0, 0.0]] * 3 + [[100.0, 0.0]] * 3),
    auxiliary_loss=None,
)
BY_EXPERT = [[[1, 0], [1, 1], [0, 0]], [[1, 0], [0, 0], [0, 1]]]


def tally() -> TokenTally:
    found = TokenTally(num_experts=2, num_tokens=3)
    found.add(processed_BTE(ASSIGNMENT, 2), entropy_BT(ASSIGNMENT, 2), ["counting", "colors"])
    return found


def test_filled_slots_alone_process_tokens():
    assert processed_BTE(ASSIGNMENT, 2).int().tolist() == BY_EXPERT


def test_slots_without_a_mask_are_all_filled():
    full = Assignment(torch.tensor([0, 1, 1, 2]), torch.ones(4), None, None, torch.zeros(3, 2), None)
    assert processed_BTE(full, 1).int().tolist() == [[[1, 0], [1, 1], [0, 1]]]


def test_an_expert_has_the_slots_of_the_tokens_that_chose_it():
    uneven = Assignment(torch.tensor([0, 1, 2, 1]), torch.ones(4), None, torch.tensor([3, 1]), torch.zeros(3, 2), None)
    assert processed_BTE(uneven, 1).int().tolist() == [[[1, 0], [1, 1], [1, 0]]]


def test_entropy_is_one_for_equal_affinities_and_zero_for_a_certain_one():
    assert entropy_BT(ASSIGNMENT, 2).tolist() == [pytest.approx([1.0] * 3), pytest.approx([0.0] * 3, abs=1e-6)]


def test_a_row_holds_the_counts_as_shares():
    row = tally().row(EMPTY, layer=4, time=0.5, with_positions=True)
    assert (row.layer, row.time, row.num_images) == (4, 0.5, 2)
    assert row.load == [0.6, 0.4]
    assert row.entropy == 0.5
    assert row.dropped_share == pytest.approx(2 / 6, abs=1e-6)
    assert row.experts_per_token == pytest.approx([2 / 6, 3 / 6, 1 / 6], abs=1e-6)
    assert row.experts_by_position == [1.0, 1.0, 0.5]
    assert row.load_by_position == [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]
    assert row.load_by_kind == {"counting": pytest.approx([2 / 3, 1 / 3], abs=1e-6), "colors": [0.5, 0.5]}
    assert row.object_experts is None
    assert row.divergence is None
    assert RoutingMapRow.model_validate(row.model_dump(exclude_none=True)) == row


def test_tallies_add():
    once, twice = tally(), tally()
    twice.merge(tally())
    assert twice.fields(with_positions=True) == once.fields(with_positions=True)
    assert twice.num_looks == 2 * once.num_looks


def test_experts_on_objects_and_elsewhere_are_means_per_token():
    found = tally()
    counts = torch.tensor([[3, 1, 0], [2, 2, 4]])
    objects, background = counts >= 3, counts < 2
    found.add_places(counts, objects, background)
    fields = found.fields(with_positions=False)
    assert (fields["object_experts"], fields["background_experts"]) == (3.5, 0.5)


def test_branches_that_agree_do_not_diverge_and_those_that_share_nothing_do_wholly():
    first = torch.tensor(BY_EXPERT).bool()
    for second, expected in ((first, 0.0), (torch.zeros_like(first), 1.0), (~first, 1.0)):
        both, either = branch_pairs_B2(first, second).sum(dim=0).tolist()
        assert 1 - both / either == expected
    half = first.clone()
    half[0] = False
    found = tally()
    found.add_branches(first, half)
    assert found.fields(with_positions=False)["divergence"] == pytest.approx(1 - 2 * 2 / (5 + 2), abs=1e-6)


def test_log_of_one_expert_divides_nothing_by_zero():
    alone = Assignment(torch.tensor([0]), torch.ones(1), None, None, torch.zeros(1, 1), None)
    assert math.isfinite(float(entropy_BT(alone, 1)))
