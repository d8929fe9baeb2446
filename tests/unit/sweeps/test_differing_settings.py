"""Runs that are named alike are told apart by their settings."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.differing_settings import differing_settings
from sweeps.plan import PlannedRun
from sweeps.planner import make_plan
from sweeps.spec import parse_spec


def planned(**parameters: Any) -> list[PlannedRun]:
    """The runs of a grid over `parameters`, which hold a list of values or a single one."""
    spread = {
        name.replace("__", "."): {"values": value} if isinstance(value, list) else {"value": value}
        for name, value in {"model__name": "nano", "train__images": 64, **parameters}.items()
    }
    command = ["${env}", "ecdit", "train", "${args_no_hyphens}"]
    spec = {"program": "ecdit", "method": "grid", "command": command, "parameters": spread}
    return list(make_plan(parse_spec(spec, "apart")).wanted)


def test_runs_of_other_names_are_told_apart_by_their_names() -> None:
    assert differing_settings(planned(routing__name=["dense", "expert_choice"], seed=[0, 1])) == {}


def test_what_most_have_is_not_listed() -> None:
    runs = planned(arm=["optim.clip_norm=1", "optim.clip_norm=1 optim.warmup_images=32", "optim.clip_norm=2"])
    assert [differing_settings(runs).get(run.name) for run in runs] == [
        None, {"optim.warmup_images": 32}, {"optim.clip_norm": 2.0},
    ]  # fmt: skip


def test_where_no_value_is_that_of_most_all_are_listed() -> None:
    runs = planned(optim__clip_norm=[1.0, 2.0], seed=[0, 1])
    found = differing_settings(runs)
    assert [found[run.name] for run in runs] == [{"optim.clip_norm": run.config["optim"]["clip_norm"]} for run in runs]


@pytest.mark.parametrize("seed", [0, [0, 1]])
def test_a_run_of_its_own_name_differs_from_none(seed: int | list[int]) -> None:
    assert differing_settings(planned(seed=seed)) == {}


class Counted(float):
    """A value that counts how often it is written, which is what comparing takes."""

    num_written = 0

    def __repr__(self) -> str:
        type(self).num_written += 1
        return super().__repr__()


def test_the_work_grows_with_the_number_of_runs_and_not_with_its_square() -> None:
    (run,) = planned(optim__name="adamw")
    runs = [
        run.model_copy(
            update={
                "name": f"{run.name.rpartition('-')[0]}-{i:06d}",
                "config": {**run.config, "optim": {**run.config["optim"], "clip_norm": Counted(i)}},
            }
        )
        for i in range(100)
    ]
    assert len(differing_settings(runs)) == len(runs)
    assert Counted.num_written <= 3 * len(runs)
