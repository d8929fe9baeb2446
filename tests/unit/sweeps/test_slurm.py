"""Without a Slurm: the arrays, the script, and a user whose machine has none. With one: `tests/slurm`."""

import re
import sys

import pytest

from experiments.errors import ConfigError, EcditError, SpecError
from sweeps.cluster import parse_cluster
from sweeps.slurm import batch_script, job_arrays, queued_jobs, submit

HOUR = {"time": "60"}


@pytest.fixture
def options(folder):
    """The #SBATCH options of the script for an array, and its other lines."""

    def read(array):
        text = batch_script(folder, "small", array)
        found = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
        return found, [line for line in text.splitlines() if line and not line.startswith("#")]

    return read


def test_one_array_for_the_runs_that_get_the_same(seeds, folder):
    plan = seeds(0, 1, 2, 3)
    rules = [{"where": {"seed": "2"}, "nodes": "2"}, {"where": {"seed": "3"}, "nodes": "1"}]
    arrays = job_arrays(folder, plan.runs, parse_cluster({**HOUR, "rules": rules}))
    assert [[run.config["seed"] for run in array.runs] for array in arrays] == [[0, 1, 3], [2]]
    assert [array.resources.nodes for array in arrays] == [1, 2]


def test_an_array_is_as_large_as_slurm_takes(seeds, folder):
    arrays = job_arrays(folder, seeds(0, 1, 2, 3, 4).runs, parse_cluster(HOUR), max_size=2)
    assert [len(array.runs) for array in arrays] == [2, 2, 1]


def test_jobs_get_the_files_of_plugins(seeds, options, monkeypatch, folder):
    [array] = job_arrays(folder, seeds(0).runs, parse_cluster(HOUR))
    assert not any("ECDIT_PLUGINS" in line for line in options(array)[1])
    monkeypatch.setenv("ECDIT_PLUGINS", "/home/me/my plugin.py")
    assert "export ECDIT_PLUGINS='/home/me/my plugin.py'" in options(array)[1]


def test_the_script_asks_for_what_the_cluster_file_says(seeds, options, folder):
    cluster = parse_cluster({
        "time": "1-00", "partition": "gpu", "account": "vision", "nodes": "2", "gpus_per_node": "8", "mem": "0",
        "cpus_per_task": "6", "constraint": "h200", "max_parallel": "2", "setup": ["module load cuda"],
        "save_seconds": "300", "extra": {"qos": "high", "exclusive": "yes"},
    })  # fmt: skip
    [array] = job_arrays(folder, seeds(0, 1, 2).runs, cluster)
    found, lines = options(array)
    logs = found.pop("output"), found.pop("error")
    assert found == {
        "array": "0-2%2", "time": "1440", "partition": "gpu", "account": "vision", "nodes": "2", "gpus-per-node": "8",
        "ntasks-per-node": "8", "cpus-per-task": "6", "mem": "0", "constraint": "h200", "signal": "USR2@300",
        "qos": "high", "exclusive": "", "requeue": "", "open-mode": "append", "job-name": "ecdit-small",
    }  # fmt: skip
    assert all(log.startswith(str(folder.path / "slurm")) for log in logs)
    assert lines[0] == "module load cuda"
    assert lines[-1].startswith("srun ")
    assert "--cpus-per-task=6 --kill-on-bad-exit=1" in lines[-1]
    assert f"{sys.executable} -u -m submitit.core._submit {folder.path / 'slurm'}" in lines[-1]


def test_what_the_cluster_file_leaves_out_is_left_to_the_cluster(seeds, options, folder):
    [array] = job_arrays(folder, seeds(0).runs, parse_cluster(HOUR))
    found, _ = options(array)
    expected = {"time", "nodes", "ntasks-per-node", "cpus-per-task", "signal", "requeue", "open-mode", "job-name"}
    assert set(found) == expected | {"output", "error"}


def test_processes_that_a_run_cannot_be_computed_by_are_refused(seeds, folder):
    plan = seeds(0)
    assert plan.runs[0].config["train"]["batch_images"] % 3
    with pytest.raises(ConfigError, match=r" on 1 x 3 tasks: train\.batch_images=\d+ is not divisible by parallel\.w"):
        job_arrays(folder, plan.runs, parse_cluster({**HOUR, "tasks_per_node": "3"}))


def test_a_run_that_asks_for_other_processes_than_its_cluster_gives_is_refused(seeds, folder):
    [run] = seeds(0).runs
    four = run.model_copy(update={"config": {**run.config, "parallel": {**run.config["parallel"], "world": 4}}})
    with pytest.raises(SpecError, match=r"has parallel\.world=4, but its cluster gives it 1 x 1 tasks\. Leave"):
        job_arrays(folder, [four], parse_cluster(HOUR))
    assert len(job_arrays(folder, [four], parse_cluster({**HOUR, "nodes": "2", "tasks_per_node": "2"}))) == 1


def test_more_processes_than_a_run_may_have_are_one_line(seeds, folder):
    """Each key is within its limits, also where two rules give one of them each."""
    alone = parse_cluster({**HOUR, "nodes": "20000", "gpus_per_node": "8"})
    rules = [{"where": {"seed": "0"}, "nodes": "20000"}, {"where": {"model": "nano"}, "gpus_per_node": "8"}]
    for cluster in (alone, parse_cluster({**HOUR, "rules": rules})):
        with pytest.raises(
            SpecError, match=r"gets 20000 x 8 tasks from its cluster, .* at most 131,072 processes\. Chan"
        ):
            job_arrays(folder, seeds(0).runs, cluster)


def test_without_slurm_nothing_is_submitted_and_the_user_hears_why(seeds, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EcditError, match=r"There is no Slurm here: scontrol is not found\. Submit from a machine"):
        submit(folder, "small", seeds(0).runs, parse_cluster(HOUR))
    assert not (folder.path / "slurm").exists()


def test_a_sweep_that_was_never_submitted_asks_slurm_nothing(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued_jobs(folder) == {}


def test_without_submitit_the_user_hears_what_to_install(seeds, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "submitit.slurm", None)
    [array] = job_arrays(folder, seeds(0).runs, parse_cluster(HOUR))
    with pytest.raises(
        EcditError, match=r"Slurm needs the package submitit\. Install it: pip install 'ecdit\[slurm\]'"
    ):
        batch_script(folder, "small", array)
