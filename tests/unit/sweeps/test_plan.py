"""A frozen plan: stays as it is, grows with the sweep file, and never loses or renames a run that was started."""

from __future__ import annotations

import time

import pytest

from experiments.errors import SpecError, StorageError
from experiments.records.record_types import Status
from experiments.records.writer import write_status
from sweeps.folder import SweepFolder
from sweeps.plan import CostEstimate
from sweeps.planner import make_plan
from sweeps.runner import freeze_plan


def start(folder, run, state="done"):
    write_status(folder.run_dir(run), Status(state=state, images_total=run.images, heartbeat=time.time()))


def test_the_same_sweep_keeps_its_plan(folder, seeds):
    plan = freeze_plan(folder, seeds(0, 1))
    assert freeze_plan(folder, seeds(0, 1)) == plan == folder.read_plan()


def test_a_changed_file_adds_runs_and_keeps_those_that_were_started(folder, seeds):
    first = freeze_plan(folder, seeds(0, 1, 2))
    start(folder, first.runs[0])
    start(folder, first.runs[1], "interrupted")
    second = freeze_plan(folder, seeds(1, 3))
    assert [(run.name, run.in_spec) for run in second.runs] == [
        (first.runs[0].name, False),
        (first.runs[1].name, True),
        (seeds(3).runs[0].name, True),
    ]
    assert second.wanted == second.runs[1:]


def test_cheaper_runs_that_are_added_do_not_move_what_was_started(folder, grid):
    def sizes(*images):
        return make_plan(grid(train__images=list(images), routing__name="dense"))

    first = freeze_plan(folder, sizes(320, 640, 960))
    start(folder, first.runs[1])
    plan = freeze_plan(folder, sizes(32, 640, 960, 320, 800))
    assert [run.images for run in plan.runs] == [320, 640, 32, 800, 960]  # what is left is again ordered by cost
    assert plan.runs[:2] == first.runs[:2]


def test_a_new_run_never_takes_the_name_of_another(folder, seeds):
    plan = seeds(0)
    new = seeds(1).runs[0]
    taken = plan.model_copy(update={"runs": [plan.runs[0].model_copy(update={"name": new.name})]})
    start(folder, freeze_plan(folder, taken).runs[0])
    names = [run.name for run in freeze_plan(folder, seeds(0, 1)).runs]
    assert names == [new.name, f"{new.name}{new.config_id[6:]}"]


def test_a_started_run_keeps_the_estimate_of_its_start(folder, seeds):
    def promised(seconds, *numbers):
        plan = seeds(*numbers)
        estimate = CostEstimate(memory_gib=1.0, seconds=seconds, basis="told")
        return plan.model_copy(update={"runs": [run.model_copy(update={"estimate": estimate}) for run in plan.runs]})

    start(folder, freeze_plan(folder, promised(10.0, 0)).runs[0])
    plan = freeze_plan(folder, promised(99.0, 0, 1))
    assert [run.estimate.seconds for run in plan.runs] == [10.0, 99.0]


def test_a_run_that_is_asked_for_again_is_wanted_again(folder, seeds):
    start(folder, freeze_plan(folder, seeds(0)).runs[0])
    freeze_plan(folder, seeds(1))
    assert [run.in_spec for run in freeze_plan(folder, seeds(0, 1)).runs] == [True, True]


def test_a_run_keeps_the_name_it_was_started_with(folder, seeds):
    plan = seeds(0)
    named = plan.model_copy(update={"runs": [plan.runs[0].model_copy(update={"name": "as-it-was"})]})
    freeze_plan(folder, named)
    assert [run.name for run in freeze_plan(folder, seeds(0, 1)).runs] == ["as-it-was", seeds(1).runs[0].name]


def test_settings_that_do_not_change_the_numbers_follow_the_newest_command(folder, grid):
    freeze_plan(folder, make_plan(grid(seed=0)))
    plan = freeze_plan(folder, make_plan(grid(seed=0), ["wandb.mode=disabled"]))
    assert [run.config["wandb"]["mode"] for run in plan.runs] == ["disabled"]


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ("{}", "this version"), ('{"schema_version": 1}', "is damaged")]
)
def test_a_damaged_plan_is_named_with_the_way_out(folder, text, message):
    folder.path.mkdir()
    folder.plan_json.write_text(text)
    with pytest.raises(SpecError, match=rf"plan\.json .*{message}.*Delete it"):
        folder.read_plan()


def test_while_one_sweep_plans_another_waits(folder):
    refused = pytest.raises(SpecError, match=r"is being planned by process \d+ on .*Wait for it")
    with folder.lock(), refused, folder.lock(timeout_seconds=0.2):
        pass
    with folder.lock():
        pass


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), SweepFolder(tmp_path / "file" / "out").lock():
        pass
