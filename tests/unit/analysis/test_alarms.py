"""An alarm names the arm and its numbers where a validation loss misleads; within seed noise or 1% there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.alarms import alarms
from analysis.compare import compare, comparison_markdown
from analysis.load_records import load_records
from experiments.records.run_folder import find_runs
from experiments.records.writer import append_evaluations


def arms(**given: object) -> pd.DataFrame:
    """A table of dense and one routed arm, whose values are `given`."""
    dense = {
        "arm": "Dense (same depth)", "setup": "nano", "baseline": "Dense (same depth)", "num_seeds": 3,
        "val_loss_mean": 0.1, "val_loss_std": 0.001, "val_loss_same_t_mean": 0.1, "val_loss_training_decision": None,
        "dropped_share": None, "dropped_share_same_t": None,
    }  # fmt: skip
    routed = {"arm": "Expert threshold", **given}
    numbers = [name for name in dense if name.startswith(("val_", "dropped_"))]
    return pd.DataFrame([dense, dense | routed]).astype(dict.fromkeys(numbers, "float64"))


@pytest.mark.parametrize(
    ("training", "std", "is_alarm"),
    [
        (0.095, 0.001, True),  # 5.3% and five times the noise
        (0.105, 0.001, True),  # in the other direction
        (0.0995, 0.0001, False),  # 0.5%
        (0.095, 0.01, False),  # within the noise
        (None, 0.001, False),
    ],
)
def test_a_decision_of_inference_that_is_off_is_named(training: float | None, std: float, is_alarm: bool) -> None:
    found = alarms(arms(val_loss_training_decision=training, val_loss_std=std))
    assert len(found) == is_alarm
    if is_alarm:
        assert found[0].startswith(
            "Expert threshold (nano): the validation loss is 0.1000 with the decision of inference"
        )
        assert f"{training:.4f} with that of training ({0.1 / (training or 1) - 1:+.1%}; seed noise 0.0010)" in found[0]


def test_one_seed_takes_the_noise_of_its_setup_or_says_that_none_is_known() -> None:
    one = {"val_loss_std": None, "num_seeds": 1, "val_loss_training_decision": 0.095}
    assert "seed noise 0.0010" in alarms(arms(**one))[0]
    alone = arms(**one).iloc[1:]
    assert "seed noise not known" in alarms(alone)[0]


@pytest.mark.parametrize(
    ("dropped", "same", "loss", "is_alarm"),
    [
        (0.05, 0.2, 0.11, True),
        (0.05, 0.06, 0.11, False),  # hardly more dropped
        (0.05, 0.2, 0.1005, False),  # hardly a higher loss
        (0.2, 0.05, 0.11, False),
    ],
)
def test_drops_that_inflate_validation_are_named(dropped: float, same: float, loss: float, is_alarm: bool) -> None:
    found = alarms(arms(dropped_share=dropped, dropped_share_same_t=same, val_loss_same_t_mean=loss))
    assert len(found) == is_alarm
    if is_alarm:
        assert (
            "20.0% of the tokens are processed by nobody on batches of one timestep and 5.0% on mixed ones" in found[0]
        )
        assert "the loss rises from 0.1000 to 0.1100 (by +10.0%, dense by +0.0%)" in found[0]


def test_a_rise_that_dense_has_too_is_no_alarm() -> None:
    table = arms(dropped_share=0.05, dropped_share_same_t=0.2)
    table["val_loss_same_t_mean"] = 0.11
    assert alarms(table) == []
    assert "dense" not in alarms(table.iloc[1:])[0]
    deep = table.iloc[:1].assign(arm="Dense (same depth), 2 layers", val_loss_same_t_mean=0.1)
    assert alarms(pd.concat([deep, table])) == []


def test_alarms_stand_in_the_page_of_the_comparison(
    write_arms: Callable[..., Path], sampled: Callable[..., object]
) -> None:
    folder = write_arms()
    for run in find_runs(folder):
        if run.read_run().config["routing"]["name"] == "expert_choice":
            row = sampled("val_loss_training_decision", 0.03, num_samples=64, weights="raw")
            append_evaluations(run, [row.model_copy(update={"settings": {}})])  # type: ignore[attr-defined]
    comparison = compare(load_records([folder]))
    assert [line.split(":")[0] for line in comparison.alarms] == ["Expert choice (nano)"]
    assert "## Alarms" in comparison_markdown(comparison)
