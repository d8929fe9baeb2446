"""The calibration: a short real training in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple

import pytest

from experiments.config.overrides import load_config
from experiments.errors import SpecError
from experiments.settings_id import dotted
from sweeps.calibration import SpeedPoint, _short, calibrate, calibrate_plan
from sweeps.planner import make_plan

TINY = ("model=nano", "model.num_layers=2", "train.batch_images=4", "eval.batch_images=4", "train.precision=fp32")


def test_a_calibration_is_a_plausible_number_of_flops_per_second(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert 1e7 < calibrate(load_config(TINY), num_threads=1) < 1e13


def test_planning_and_pricing_never_import_torch():
    code = (
        "import sys; from sweeps import calibration, cost; from sweeps.planner import make_plan; "
        "from sweeps.layout_search import refuse_what_does_not_fit; from sweeps.spec import load_spec; "
        "plan, device = make_plan(load_spec('isoflop')), cost.table_device('H100'); "
        "refuse_what_does_not_fit(cost.estimated(plan, device), device); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


TRAINER = """
import json, sys, pathlib, yaml
_, config, _, folder = sys.argv[1:]
model, folder = yaml.safe_load(open(config))["model"]["name"], pathlib.Path(folder)
folder.mkdir()
speed = {"nano": 10.0, "mini": 2.0}[model]
rates = [0.001] * 3 + [speed] * 7 + [1000.0]
(folder / "steps.jsonl").write_text("".join(json.dumps({"images_per_second": rate}) + chr(10) for rate in rates))
"""
"""Trains nothing, and only knows the models at both ends."""


def test_the_cheapest_and_the_dearest_model_are_measured_by_the_median_after_a_warm_up(grid):
    plan = make_plan(grid(model__name=["micro", "mini", "nano"], seed=[0, 1]))
    points = calibrate_plan(plan, command=[sys.executable, "-c", TRAINER])
    nano, mini = (plan.runs[place].train_flops_per_image for place in (0, -1))
    assert points == (SpeedPoint(nano, 10.0 * nano), SpeedPoint(mini, 2.0 * mini))
    assert len(calibrate_plan(make_plan(grid(seed=[0, 1])), command=[sys.executable, "-c", TRAINER])) == 1


def test_only_what_has_room_and_can_be_afforded_is_timed(grid):
    """Known before any training: `TRAINER` would not know the other models."""
    plan = make_plan(grid(model__name=["micro", "mini", "nano", "B"]))
    trainer = [sys.executable, "-c", TRAINER]

    def names(**options):
        return [
            next(run.config["model"]["name"] for run in plan.runs if run.train_flops_per_image == point[0])
            for point in map(astuple, calibrate_plan(plan, 2, command=trainer, **options))
        ]

    assert names() == ["nano", "mini"], "eleven steps or three of B would take too long on two cores"
    assert names(has_room=lambda config: config.model.width < 128) == ["nano"]
    assert names(has_room=lambda config: config.model.name in ("mini", "B")) == ["mini"]
    assert names(has_room=lambda config: False) == []
    assert names(assumed_flops_per_second=1.0) == []


@pytest.mark.parametrize(
    ("script", "seconds", "message"),
    [
        ("import sys; sys.exit('error: no space')", 60.0, r"the calibration failed: error: no space Use --device"),
        ("import sys; sys.exit(3)", 60.0, r"the calibration failed: no message"),
        ("import time; time.sleep(60)", 1.0, r"the calibration did not end in 1 s\. Use --device"),
    ],
)
def test_a_calibration_that_ends_badly_is_one_clear_line(script, seconds, message):
    with pytest.raises(SpecError, match=message):
        calibrate(load_config(TINY), timeout_seconds=seconds, command=[sys.executable, "-c", script])


def test_the_short_run_that_is_timed_needs_no_room_for_a_warm_up_and_a_cooldown():
    config = load_config(["optim.schedule=wsd", "optim.warmup_images=3200"])
    short = load_config([f"{key}={value}" for key, value in dotted(_short(config, 3).model_dump(mode="json"))])
    assert (short.total_images, short.optim.schedule) == (3 * 32, "constant")
