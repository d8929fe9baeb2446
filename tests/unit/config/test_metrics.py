"""The registry of metrics: orders that records and figures depend on, and names that are unique."""

from __future__ import annotations

from collections import Counter

import pytest

from experiments.config.metrics import (
    DEFAULT_METRICS,
    IMPORTED,
    METRICS,
    PICTURE_METRICS,
    default_metrics,
    find_value,
    in_recorded_order,
    values_in,
)


def test_rows_are_recorded_in_one_order_whatever_was_asked_for_first() -> None:
    order = [
        "frechet-shapes", "shapes-geneval", "intra-frechet-shapes", "precision-recall-shapes", "memorisation-shapes",
        "frechet-pictures", "precision-recall-pictures", "memorisation-pictures", "caption-retrieval",
        "fid", "clip-score", "routing", "validation-loss", "inference-time",
    ]  # fmt: skip
    assert [row.name for row in in_recorded_order(METRICS)] == order
    assert [row.name for row in in_recorded_order(reversed(METRICS))] == order


def test_each_figure_begins_with_the_metric_that_its_other_panels_are_sampled_like() -> None:
    names = {
        figure: [value.name for value in values_in(figure)]
        for figure in ("alignment", "image-quality", "quality-time", "guidance", "ema-width")
    }
    assert names == {
        "alignment": [
            "shapes-geneval",
            "shapes-geneval-held-out",
            "caption-retrieval",
            "caption-retrieval-held-out",
        ],
        "image-quality": [
            "frechet-shapes",
            "intra-frechet-shapes",
            "precision-shapes",
            "recall-shapes",
            "frechet-pictures",
            "precision-pictures",
            "recall-pictures",
            "fid",
            "clip-score",
        ],
        "quality-time": ["shapes-geneval", "frechet-shapes", "frechet-pictures", "caption-retrieval"],
        "guidance": ["shapes-geneval", "frechet-shapes", "frechet-pictures", "caption-retrieval", "branch_divergence"],
        "ema-width": ["shapes-geneval", "frechet-shapes", "frechet-pictures", "caption-retrieval", "validation-loss"],
    }
    over_training = values_in("quality-over-training", in_recorded_order(METRICS))
    assert [value.name for value in over_training] == [
        "frechet-shapes", "shapes-geneval", "frechet-pictures", "caption-retrieval",
    ]  # fmt: skip


def test_every_name_is_one_metric_and_every_default_exists() -> None:
    values = [value.name for row in METRICS.values() for value in row.values] + [value.name for value in IMPORTED]
    assert max(Counter(values).values()) == 1
    assert all(name == row.name for name, row in METRICS.items())
    assert set(DEFAULT_METRICS) | set(PICTURE_METRICS) <= set(METRICS)


def test_defaults_fit_their_data() -> None:
    for kind in ("scenes", "pictures"):
        assert all(METRICS[name].fits(frozenset({kind})) for name in default_metrics(frozenset({kind})))
    assert default_metrics(frozenset({"scenes", "classes"})) == DEFAULT_METRICS
    assert default_metrics(frozenset({"pictures", "classes"})) == PICTURE_METRICS
    assert default_metrics(frozenset()) == DEFAULT_METRICS


@pytest.mark.parametrize("name", ["copied-share", "copied-share-pictures"])
def test_a_share_of_copies_says_which_images_were_not_searched(name: str) -> None:
    value = find_value(name)
    assert value is not None
    assert "Other data that the first weights of a run were trained on are not searched." in value.note
