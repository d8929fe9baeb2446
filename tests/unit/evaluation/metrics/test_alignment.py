"""Scores are means over kinds, with intervals that cover what they should."""

import pytest

from experiments.evaluation.metrics.alignment import alignment_rows
from experiments.evaluation.metrics.intervals import mean_interval, wilson
from experiments.records.record_types import EvalRow

BASE = EvalRow(images_seen=64, metric="", value=0.0, num_samples=1, seed=3, weights="ema", settings={"guidance": 2.0})


def test_the_score_is_the_mean_over_kinds_and_not_over_images():
    kinds = ["counting"] * 6 + ["colors"] * 2
    rows = {row.metric: row for row in alignment_rows("score", kinds, [True] * 3 + [False] * 3 + [True] * 2, BASE)}
    assert {metric: (row.value, row.num_samples) for metric, row in rows.items()} == {
        "score": (0.75, 8),
        "score/counting": (0.5, 6),
        "score/colors": (1.0, 2),
    }
    assert all(row.settings == BASE.settings and row.seed == 3 and row.images_seen == 64 for row in rows.values())


def test_every_row_has_the_interval_of_its_counts():
    rows = alignment_rows("score", ["counting", "counting", "colors"], [True, False, False], BASE)
    assert [(row.interval_low, row.interval_high) for row in rows] == [
        pytest.approx(mean_interval([(1, 2), (0, 1)])),
        pytest.approx(wilson(1, 2)),
        pytest.approx(wilson(0, 1)),
    ]
