"""Measures how much the choice of experts says about a token's position, its time, and the class of its image.

The measure is the mutual information between the expert of an assignment and the position, time or class, divided by
the logarithm of the number of experts: 0 where each expert works alike everywhere, 1 where one of them alone works at
each place. It is computed for all images, and again without each of several groups of images, from which
`analysis.expert_findings` computes intervals and removes the bias of few images (the jackknife).

Most classes have few images, where the information is biased most. That of classes is therefore recorded minus its mean
over random exchanges of the classes among the images, so that a class of a single image says nothing.

Legend: N images, B images of a batch, T tokens of an image, E experts, G groups of images, A places (positions, times
or classes), S times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_GROUPS = 20
NUM_EXCHANGES = 20
DIGITS = 6
SHOWN_TIMES = 3
"""The number of times at which the load by class is recorded, from the first that was measured to the last."""

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


class ExpertInformation:
    """Counts the assignments of one layer by image and time, and by position."""

    def __init__(self, num_images: int, num_experts: int, num_tokens: int) -> None:
        """Begins without images; image n belongs to one of at most `MAX_GROUPS` groups."""
        self.num_groups = min(MAX_GROUPS, num_images)
        self._group_N = np.arange(num_images) * self.num_groups // num_images
        self._position_GTE = np.zeros((self.num_groups, num_tokens, num_experts))
        self._num_images, self._num_experts = num_images, num_experts
        self._load_NE: dict[float, Tensor] = {}

    def add(self, time: float, numbers: range, by_expert_BTE: Tensor) -> None:
        """Adds images with these numbers at one time: whether each expert processed each token."""
        counts_BTE = by_expert_BTE.numpy()
        np.add.at(self._position_GTE, self._group_N[numbers.start : numbers.stop], counts_BTE)
        if time not in self._load_NE:
            self._load_NE[time] = torch.zeros(self._num_images, self._num_experts, dtype=torch.int32)
        self._load_NE[time][numbers.start : numbers.stop] += by_expert_BTE.sum(dim=1).int()

    def shown_times(self) -> list[float]:
        """Returns a few times, from the first that was measured to the last."""
        times, most = list(self._load_NE), min(SHOWN_TIMES, len(self._load_NE))
        return [times[round(place * (len(times) - 1) / max(1, most - 1))] for place in range(most)]

    def at_time(self, time: float, attributes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Returns the fields of a `RoutingMapRow` at one time; `attributes` are the classes of all images."""
        load_NE = self._load_NE[time].double().numpy()
        found: dict[str, Any] = {"load_entropy": self._left_out_entropies(load_NE)}
        if time in self.shown_times():
            found["load_by_class"] = {name: load_by(load_NE, values) for name, values in attributes.items()}
        return found

    def over_all_times(self, attributes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Returns the fields of a `RoutingMapRow` over all times."""
        load_NSE = torch.stack(list(self._load_NE.values()), dim=1).double().numpy()
        load_NE = load_NSE.sum(axis=1)
        return {
            "load_entropy": self._left_out_entropies(load_NE),
            "load_by_class": {name: load_by(load_NE, values) for name, values in attributes.items()},
            "position_information": _rounded(map(information, _left_out(self._position_GTE))),
            "time_information": _rounded(map(information, _left_out(self._grouped(load_NSE)))),
            "class_information": {name: self._of_classes(load_NE, values) for name, values in attributes.items()},
        }

    def _grouped(self, values_N: Floats) -> Floats:
        grouped_G: Floats = np.zeros((self.num_groups, *values_N.shape[1:]))
        np.add.at(grouped_G, self._group_N, values_N)
        return grouped_G

    def _left_out_entropies(self, load_NE: Floats) -> list[float]:
        whole = math.log(max(2, self._num_experts))
        return _rounded(_entropy(load_E) / whole for load_E in _left_out(self._grouped(load_NE)))

    def _of_classes(self, load_NE: Floats, values: Sequence[str]) -> list[float]:
        class_N = np.unique(np.array(values), return_inverse=True)[1]
        kept = [np.ones(len(class_N), dtype=bool), *(self._group_N != group for group in range(self.num_groups))]
        return _rounded(class_information(load_NE[kept_N], class_N[kept_N]) for kept_N in kept)


def information(counts_AE: Floats) -> float:
    """Returns the mutual information of places and experts over log E, from the number of assignments of each pair."""
    total = counts_AE.sum()
    if total == 0:
        return 0.0
    joint_AE = counts_AE / total
    shared = _entropy(joint_AE.sum(axis=0)) + _entropy(joint_AE.sum(axis=1)) - _entropy(joint_AE)
    return float(shared / math.log(max(2, counts_AE.shape[-1])))


def class_information(load_NE: Floats, class_N: Numbers) -> float:
    """Returns the information of classes minus its mean where they are exchanged among the images at random."""
    generator = np.random.default_rng(0)
    exchanged = [generator.permutation(class_N) for _ in range(NUM_EXCHANGES)]
    by_chance = np.mean([information(_summed(load_NE, other_N)) for other_N in exchanged])
    return information(_summed(load_NE, class_N)) - float(by_chance)


def load_by(load_NE: Floats, values: Sequence[str]) -> dict[str, list[float]]:
    """Returns for each value, in the order of their names, the share of its assignments that each expert has."""
    names, class_N = np.unique(np.array(values), return_inverse=True)
    load_CE = _summed(load_NE, class_N)
    shares_CE = load_CE / load_CE.sum(axis=1, keepdims=True).clip(min=1)
    return {str(name): _rounded(shares_E) for name, shares_E in zip(names, shares_CE, strict=True)}


def _summed(load_NE: Floats, class_N: Numbers) -> Floats:
    summed_CE: Floats = np.zeros((int(class_N.max()) + 1, load_NE.shape[1]))
    np.add.at(summed_CE, class_N, load_NE)
    return summed_CE


def _left_out(counts_G: Floats) -> list[Floats]:
    """Returns the sum over all groups, and then that without each of them."""
    total = counts_G.sum(axis=0)
    return [total, *(total - counts for counts in counts_G)]


def _entropy(values: Floats) -> float:
    shares = values[values > 0] / max(values.sum(), 1e-300)
    return float(-(shares * np.log(shares)).sum())


def _rounded(values: Any) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
