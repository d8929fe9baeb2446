"""What the choice of experts says about position, time and class is what a count over tokens would find."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.evaluation.inference.expert_information import (
    MAX_GROUPS,
    ExpertInformation,
    class_information,
    information,
    load_by,
)

NUM_EXPERTS, NUM_TOKENS, TIMES = 4, 8, (0.9, 0.5, 0.1)


def assigned(expert_BT: Tensor) -> Tensor:
    """Bool [B, T, E]: each token by its one expert."""
    return torch.nn.functional.one_hot(expert_BT, NUM_EXPERTS).bool()


def counted(expert_SNT: Tensor, batch_images: int = 3) -> ExpertInformation:
    """The counts of images that arrive in batches, at each time."""
    num_images = expert_SNT.shape[1]
    found = ExpertInformation(num_images, NUM_EXPERTS, NUM_TOKENS)
    for first in range(0, num_images, batch_images):
        numbers = range(first, min(first + batch_images, num_images))
        for time, expert_NT in zip(TIMES, expert_SNT, strict=True):
            found.add(time, numbers, assigned(expert_NT[numbers.start : numbers.stop]))
    return found


def random_experts(num_images: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(NUM_EXPERTS, (len(TIMES), num_images, NUM_TOKENS), generator=generator)


def by_hand(pairs: list[tuple[int, int]]) -> float:
    """Mutual information of pairs (place, expert) from its definition, over log E."""
    total, joint = len(pairs), {pair: pairs.count(pair) / len(pairs) for pair in set(pairs)}
    place = {a: sum(1 for pair in pairs if pair[0] == a) / total for a, _ in joint}
    expert = {e: sum(1 for pair in pairs if pair[1] == e) / total for _, e in joint}
    found = sum(share * math.log(share / (place[a] * expert[e])) for (a, e), share in joint.items())
    return found / math.log(NUM_EXPERTS)


def test_information_is_zero_where_experts_work_alike_and_one_where_each_has_its_place() -> None:
    assert information(np.outer([1.0, 2.0, 3.0], [4.0, 1.0])) == pytest.approx(0, abs=1e-12)
    assert information(np.eye(4) * 7) == pytest.approx(1)
    assert information(np.zeros((3, 4))) == 0


def test_the_fields_are_those_of_a_count_by_hand_with_all_images_and_without_each() -> None:
    expert_SNT = random_experts(num_images=6)
    found = counted(expert_SNT).over_all_times({"class": list("aabbcc")})
    for left_out in range(-1, 6):
        kept = [n for n in range(6) if n != left_out]
        cells = [(s, n, t) for s in range(3) for n in kept for t in range(NUM_TOKENS)]
        expert = {cell: int(expert_SNT[cell]) for cell in cells}
        at = left_out + 1
        assert found["position_information"][at] == pytest.approx(by_hand([(c[2], expert[c]) for c in cells]), abs=1e-6)
        assert found["time_information"][at] == pytest.approx(by_hand([(c[0], expert[c]) for c in cells]), abs=1e-6)
        shares = [sum(1 for c in cells if expert[c] == e) / len(cells) for e in range(NUM_EXPERTS)]
        entropy = -sum(share * math.log(share) for share in shares) / math.log(NUM_EXPERTS)
        assert found["load_entropy"][at] == pytest.approx(entropy, abs=1e-6)


def test_many_images_are_left_out_in_groups() -> None:
    found = counted(random_experts(num_images=50)).over_all_times({"class": ["a"] * 50})
    assert len(found["position_information"]) == 1 + MAX_GROUPS


def test_the_batch_changes_nothing() -> None:
    expert_SNT, classes = random_experts(num_images=7), {"class": list("abcabca")}
    assert counted(expert_SNT, 2).over_all_times(classes) == counted(expert_SNT, 7).over_all_times(classes)


def test_a_class_that_has_its_expert_is_found_and_one_of_a_single_image_says_nothing() -> None:
    class_N = np.arange(40) % NUM_EXPERTS
    load_NE = np.eye(NUM_EXPERTS)[class_N] * 9
    assert class_information(load_NE, class_N) > 0.9
    assert class_information(load_NE, np.arange(40)) == pytest.approx(0, abs=1e-12)
    values = [
        class_information(np.random.default_rng(s).multinomial(20, [0.25] * 4, 40) * 1.0, class_N) for s in range(30)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(30)


def test_the_load_by_class_is_the_share_of_each_expert_and_recorded_at_few_times() -> None:
    load_NE = np.array([[1.0, 0, 0, 1], [3, 0, 0, 1], [0, 5, 0, 0], [0, 0, 0, 0]])
    assert load_by(load_NE, ["b", "b", "a", "none"]) == {
        "a": [0, 1, 0, 0], "b": [pytest.approx(4 / 6, abs=1e-6), 0, 0, pytest.approx(2 / 6, abs=1e-6)], "none": [0] * 4,
    }  # fmt: skip
    found = counted(random_experts(num_images=4))
    assert found.shown_times() == list(TIMES)
    assert set(found.at_time(0.9, {"class": list("abab")})["load_by_class"]["class"]) == {"a", "b"}
