"""Sweeps on a real Slurm: the losses of undisturbed runs, whatever the cluster does to the jobs.

Together about 3 minutes on two idle cores. The run that meets its time limit (a minute, Slurm's least) takes no
processor, starts first and is looked at last.
"""

from pathlib import Path

import psutil
import pytest

from experiments.errors import EcditError
from sweeps.slurm import batch_script, job_arrays, recorded_jobs
from tests.training_runs import numbers

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.multi, pytest.mark.timeout(600)]


def losses(folder):
    rows = numbers(folder)
    return [row["loss"] for row in rows["steps.jsonl"]] + [row["value"] for row in rows["evals.jsonl"]]


@pytest.fixture(scope="module", autouse=True)
def limited(slurm, sweep):
    """A run of 40 s, told to save 50 s before the end of its minute: Slurm looks at the limits twice a minute."""
    run = sweep(time="1", save_seconds="50", partition="aside")
    return run, run.submit(command=[str(Path(__file__).with_name("slow_run.py"))])


@pytest.fixture(scope="module")
def array(slurm, sweep):
    """An array of three runs, one of which fails, submitted twice and worked off."""
    runs = sweep(arms=["seed=0", "seed=1", "optim.learning_rate=1e3 optim.weight_decay=1e3"])
    first, second = runs.submit(), runs.submit()
    slurm.wait_until_idle()
    return runs, first, second


def is_good(run):
    return run.config["optim"]["learning_rate"] < 1


def test_an_array_gives_the_losses_of_runs_without_slurm(array, without_slurm):
    runs, _, _ = array
    good = [run for run in runs.runs if is_good(run)]
    assert len(good) == 2
    for run in good:
        run_dir = runs.folder.run_dir(run)
        assert run_dir.read_status().state == "done", runs.logs()
        assert numbers(run_dir.path) == numbers(without_slurm(run.config["seed"]))


def test_a_run_that_fails_is_failed_and_stops_no_other(array):
    runs, _, _ = array
    [bad] = [runs.folder.run_dir(run).read_status() for run in runs.runs if not is_good(run)]
    assert bad.state == "failed", runs.logs()
    assert bad.reason.startswith("Not finite after 8 images")


def test_submitting_again_runs_nothing_twice(array, slurm):
    runs, first, second = array
    assert len(first.submitted) == 3
    assert len({job.split("_")[0] for job in first.submitted.values()}) == 1, "one array"
    assert second.submitted == {}
    assert second.queued == first.submitted == recorded_jobs(runs.folder)
    third = runs.submit()
    assert set(third.done) == {run.name for run in runs.runs if is_good(run)}
    assert set(third.submitted) == {run.name for run in runs.runs if not is_good(run)}, "what failed is tried again"
    slurm.answer("scancel", *third.submitted.values())
    slurm.wait_until_idle()


def test_of_two_jobs_for_one_run_one_trains_and_the_other_leaves_it_alone(slurm, sweep, without_slurm):
    run = sweep()
    run.submit()
    (run.folder.path / "slurm" / "jobs.jsonl").unlink()
    assert len(run.submit().submitted) == 1, "nobody knows of the first job any more"
    slurm.wait_until_idle()
    assert run.status().state == "done", run.logs()
    assert "is being written by another process" in run.logs()
    assert numbers(run.run_dir().path) == numbers(without_slurm(0))


def test_what_slurm_refuses_is_one_line_and_nothing_is_recorded(sweep, capsys):
    run = sweep(partition="nowhere")
    with pytest.raises(EcditError, match=r"Slurm refused the jobs: .*invalid partition.* Correct the cluster file\.$"):
        run.submit()
    assert capsys.readouterr() == ("", "")
    assert recorded_jobs(run.folder) == {}


def test_the_dry_run_shows_the_script_that_is_submitted(array):
    runs, first, _ = array
    job = next(iter(first.submitted.values())).split("_")[0]
    submitted = (runs.folder.path / "slurm" / f"{job}_submission.sh").read_text()
    [asked] = job_arrays(runs.folder, runs.runs, runs.cluster)
    assert batch_script(runs.folder, runs.plan.sweep, asked) == submitted


def test_a_longer_run_waits_for_the_job_of_the_shorter_one_and_continues_from_it(sweep, slurm):
    wsd = ("optim.schedule=wsd", "optim.warmup_images=16")
    runs = sweep(*wsd, arms=["train.images=96", "train.images=160"])
    short, long = runs.runs
    assert long.parent == short.name
    runs.submit()
    slurm.wait_until_idle()
    assert [runs.status(number).state for number in (0, 1)] == ["done", "done"], runs.logs()
    assert runs.run_dir(1).read_run().parent.name == short.name
    rows = [numbers(runs.run_dir(number).path)["steps.jsonl"] for number in (0, 1)]
    trunk = [[row for row in each if row["images_seen"] <= long.trunk_images] for each in rows]
    assert trunk[0] == trunk[1] != []


def test_two_nodes_train_one_run(slurm, sweep, without_slurm):
    run = sweep(nodes="2")
    run.submit()
    slurm.wait_until_idle()
    assert run.status().state == "done", run.logs()
    assert run.run_dir().read_run().world == 2
    assert losses(run.run_dir().path) == pytest.approx(losses(without_slurm(0)), rel=2e-5)


def test_a_run_told_to_save_is_queued_again_and_gives_the_same_losses(slurm, sweep, without_slurm):
    runs = sweep(arms=["seed=0 train.images=16", "seed=0"])
    job = runs.submit().submitted[runs.runs[1].name]
    assert job.endswith("_1"), "the last of an array, whose bare id is that of the whole array"
    runs.wait_for_rows(3, number=1)
    slurm.answer("scancel", "--signal=USR2", job)
    slurm.wait_until_idle()
    assert runs.status(1).state == "done", runs.logs()
    assert f"Queueing {job} again" in runs.logs()
    assert runs.logs().count("Queueing") == 1
    assert "Continuing at" in runs.logs()
    assert numbers(runs.run_dir(1).path) == numbers(without_slurm(0))


def test_a_preempted_run_is_queued_again_and_gives_the_same_losses(slurm, sweep, without_slurm):
    run = sweep(nodes="2")
    run.submit()
    run.wait_for_rows(3)
    slurm.answer("srun", "--partition=urgent", "--nodes=2", "true")
    slurm.wait_until_idle()
    assert run.status().state == "done", run.logs()
    assert "Continuing at" in run.logs()
    assert losses(run.run_dir().path) == pytest.approx(losses(without_slurm(0)), rel=2e-5)


def test_a_cancelled_run_saves_and_goes_on_only_when_it_is_submitted_again(slurm, sweep, without_slurm):
    run = sweep()
    [job] = run.submit().submitted.values()
    run.wait_for_rows(3)
    slurm.answer("scancel", job)
    slurm.wait_until_idle()
    assert run.status().state == "interrupted", run.logs()
    assert "again" not in run.logs()
    [again] = run.submit().submitted.values()
    assert again != job
    slurm.wait_until_idle()
    assert run.status().state == "done", run.logs()
    assert numbers(run.run_dir().path) == numbers(without_slurm(0))


def test_a_process_that_is_killed_fails_the_run_and_is_named(slurm, sweep):
    run = sweep("train.images=9600", nodes="2")
    run.submit()
    run.wait_for_rows(3)
    other = next(process for process in psutil.process_iter() if is_rank(process, 1, run.run_dir().path))
    other.kill()
    slurm.wait_until_idle()
    assert run.status().state == "failed", run.logs()
    assert run.status().reason == "process 1 on n2: killed by SIGKILL, perhaps for lack of memory"


def test_a_run_goes_on_after_its_time_limit(slurm, limited):
    run, submission = limited
    [job] = submission.submitted.values()
    slurm.wait_until_idle("aside")
    assert run.status().state == "done", run.logs()
    assert run.status().images_seen == 40
    assert f"Queueing {job} again" in run.logs()


def is_rank(process, rank, folder):
    try:
        return str(folder) in process.cmdline() and process.environ().get("SLURM_PROCID") == str(rank)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
