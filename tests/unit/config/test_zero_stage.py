"""Which ZeRO stage `auto` is, for a run and for its plan."""

from __future__ import annotations

import pytest

from experiments.config.memory import memory
from experiments.config.overrides import load_config
from experiments.config.zero_stage import planned_stage, resolved_stage


@pytest.mark.parametrize(
    ("settings", "precision", "stage"),
    [
        ([], "fp32", 0),
        ([], "bf16", 1),
        (["parallel.world=2"], "fp32", 1),
        (["parallel.zero_stage=1"], "fp32", 1),
        (["parallel.zero_stage=2"], "fp32", 2),
        (["parallel.zero_stage=0", "parallel.world=2"], "bf16", 0),
    ],
)
def test_one_process_in_fp32_spreads_nothing_unless_it_is_told_to(settings, precision, stage):
    assert resolved_stage(load_config(settings), precision) == stage


@pytest.mark.parametrize("on_accelerator", [True, False])
def test_a_plan_has_the_stage_of_the_run(on_accelerator):
    config = load_config(["train.precision=auto"])
    assert planned_stage(config, on_accelerator) == resolved_stage(config, "bf16" if on_accelerator else "fp32")


def test_the_sharded_optimizer_would_hold_the_weights_a_second_time():
    config, sharded = load_config(["model=micro"]), load_config(["model=micro", "parallel.zero_stage=1"])
    more = memory(sharded, False).persistent - memory(config, False).persistent
    assert more == memory(config, False).parameters
