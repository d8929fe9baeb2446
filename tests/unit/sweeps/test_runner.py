"""A sweep with real worker processes: faults of one run, resuming, stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from experiments.errors import SpecError
from sweeps.plan import CostEstimate
from sweeps.progress import read_sweep
from sweeps.runner import freeze_plan


def states(result):
    return [run.state for run in result.runs]


def interrupt_once_ready(*signals, num_ready=1):
    """An `on_progress` that sends each signal to this process, once workers can take them."""
    left = list(signals)

    def on_progress(snapshot):
        num_running = sum(run.images_seen > 0 and run.state == "running" for run in snapshot.runs)
        if left and num_running >= num_ready:
            os.kill(os.getpid(), left.pop(0))

    return on_progress


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "RuntimeError: the layer exploded"),
        ("fail", "the loss is not finite in blocks.1"),
        ("die", "killed by SIGKILL, perhaps for lack of memory"),
        ("mute", "threads 1 behaviour mute"),
    ],
)
def test_a_failing_run_gives_its_reason_and_does_not_stop_the_others(run, seeds, folder, behaviour, reason):
    result = run(seeds(0, 1), f"0={behaviour}", num_slots=1)
    assert states(result) == ["failed", "done"]
    assert result.runs[0].reason == reason
    assert result.exit_code == 1
    assert read_sweep(folder.path).runs[0].reason == reason


def test_a_run_is_judged_by_its_status_and_not_by_its_exit_code(run, seeds):
    result = run(seeds(0), "0=abort_at_exit")
    assert states(result) == ["done"]
    assert result.exit_code == 0


def test_finished_runs_are_left_alone(run, seeds, folder):
    plan = seeds(0, 1)
    assert run(plan).exit_code == 0
    files = [path for path in folder.path.rglob("*") if path.is_file() and "claims" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert run(plan, "0=crash", "1=crash").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_failed_run_is_tried_again_by_the_same_command(run, seeds):
    assert states(run(seeds(0), "0=crash")) == ["failed"]
    result = run(seeds(0))
    assert states(result) == ["done"]
    assert result.runs[0].val_loss == 0.125


def test_a_failure_is_not_explained_with_the_reason_of_the_last_attempt(run, seeds):
    run(seeds(0), "0=fail")
    assert run(seeds(0), "0=mute").runs[0].reason == "threads 1 behaviour mute"


def test_a_run_that_was_killed_is_tried_again_and_one_that_failed_is_not(run, seeds, folder):
    texts = []
    result = run(
        seeds(0, 1, 2), "0=die_once", "1=fail", "2=crash", retries=1,
        on_progress=lambda snapshot: texts.extend(event.text for event in snapshot.events),
    )  # fmt: skip
    assert states(result) == ["done", "failed", "failed"]
    assert texts == ["killed by SIGKILL, perhaps for lack of memory; tried again in 0 s (1 of 1)"]
    starts = [folder.run_dir(planned).log.read_text().count("threads 1") for planned in seeds(0, 1, 2).runs]
    assert starts == [2, 1, 1]


def test_what_is_killed_every_time_fails_in_the_end(run, seeds):
    result = run(seeds(0), "0=die", retries=1)
    assert states(result) == ["failed"]
    assert result.runs[0].reason == "killed by SIGKILL, perhaps for lack of memory, 2 times"


def test_a_run_that_gives_no_sign_is_ended_and_holds_up_no_other(run, seeds):
    result = run(seeds(0, 1), "0=hang", num_slots=1, timeout_seconds=6.0)  # the sound one gets this long to start
    assert states(result) == ["failed", "done"]
    assert result.runs[0].reason == "gave no sign for 6 s"


def test_failed_runs_are_left_alone_when_asked_to(run, seeds):
    run(seeds(0), "0=fail")
    result = run(seeds(0), retry_failed=False)
    assert states(result) == ["failed"]
    assert result.runs[0].reason == "the loss is not finite in blocks.1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_sweep_lets_its_runs_save_and_continues_by_the_same_command(run, seeds, folder, number):
    stop = interrupt_once_ready(number, num_ready=2)
    result = run(seeds(0, 1, 2), "0=wait_for_stop", "1=wait_for_stop", on_progress=stop)
    assert states(result) == ["interrupted", "interrupted", "planned"]
    assert [run.images_seen for run in result.runs] == [32, 32, 0]
    assert result.exit_code == 130
    assert run(seeds(0, 1, 2)).exit_code == 0
    rows = [len(folder.run_dir(planned).read_rows(folder.run_dir(planned).steps).rows) for planned in seeds(0, 1).runs]
    assert rows == [2, 2]  # the first half was not computed again


def test_a_second_interrupt_kills_what_does_not_stop(run, seeds):
    stop = interrupt_once_ready(signal.SIGINT, signal.SIGINT)
    result = run(seeds(0), "0=ignore_stop", on_progress=stop)
    assert result.exit_code == 130
    assert (result.runs[0].state, result.runs[0].reason) == ("interrupted", "its process is gone")


def test_a_run_that_outlived_its_sweep_is_waited_for_and_not_started_twice(run, seeds, folder, worker):
    plan = seeds(0)
    run_dir, file = folder.run_dir(plan.runs[0]), folder.write_config(plan.runs[0])
    command = [*worker, "0=wait_for_stop", "--config", str(file), "--run-dir", str(run_dir.path)]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as orphan:
        while not ((status := run_dir.read_status()) and status.reason):
            time.sleep(0.05)
        result = run(plan, "0=crash", on_progress=interrupt_once_ready(signal.SIGTERM))
    assert orphan.returncode == 0
    assert states(result) == ["interrupted"]
    assert not run_dir.log.exists()


def test_workers_get_their_share_of_the_cores(run, seeds, folder):
    run(seeds(0))
    assert folder.run_dir(seeds(0).runs[0]).log.read_text().startswith("threads 1 ")


def test_time_left_is_unknown_until_something_was_measured(run, seeds):
    estimates = []

    def stop_once_estimated(snapshot):
        estimates.append(snapshot.seconds_left)
        if snapshot.seconds_left is not None and not snapshot.stopping:
            os.kill(os.getpid(), signal.SIGTERM)

    run(seeds(0), "0=wait_for_stop", on_progress=stop_once_estimated)
    assert estimates[0] is None
    assert any(seconds is not None and seconds > 0 for seconds in estimates)


def test_time_left_follows_the_estimated_seconds_where_an_image_of_one_run_takes_longer(run, seeds):
    """Both runs have the FLOPs of dense, and the second one is estimated to take twenty times as long."""
    ratios, plan = [], seeds(0, 1)
    estimates = [CostEstimate(memory_gib=0.1, seconds=seconds, basis="calibration") for seconds in (1.0, 20.0)]
    planned = [one.model_copy(update={"estimate": each}) for one, each in zip(plan.runs, estimates, strict=True)]

    def stop_halfway(snapshot):
        if snapshot.seconds_left is not None and not snapshot.stopping:
            ratios.append(snapshot.seconds_left / snapshot.seconds)
            os.kill(os.getpid(), signal.SIGTERM)

    run(plan.model_copy(update={"runs": planned}), "0=wait_for_stop", num_slots=1, on_progress=stop_halfway)
    assert 10 < ratios[0] < 42  # half a second of 21 is done; by FLOPs it would be a quarter of the work, a ratio of 3


def test_a_folder_that_cannot_be_written_fails_the_run_and_not_the_sweep(run, seeds, folder):
    plan = seeds(0, 1)
    blocked = folder.run_dir(plan.runs[0]).path
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    result = run(plan)
    assert states(result) == ["failed", "done"]
    assert "cannot write" in result.runs[0].reason


def test_a_folder_of_another_sweep_is_refused(seeds, folder):
    freeze_plan(folder, seeds(0))
    with pytest.raises(SpecError, match="holds the sweep 'small', not 'other'"):
        freeze_plan(folder, seeds(0).model_copy(update={"sweep": "other"}))
