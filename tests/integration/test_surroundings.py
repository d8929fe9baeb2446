"""A regular install in a working folder, and under variables of a launcher, that have nothing to do with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from experiments.records.run_folder import RunDir
from tests.training_runs import TINY, environment

pytestmark = [pytest.mark.slow, pytest.mark.multi]
ROOT = Path(__file__).parents[2]
PACKAGES = ("ecdit_cli", "sweeps", "analysis", "experiments")
TIMEOUT_SECONDS = 400
RANKS = {
    "torchrun": {
        "RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "TORCHELASTIC_RUN_ID": "none", "PET_NNODES": "2",
    },
    "srun": {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "{rank}", "SLURM_LOCALID": "{rank}",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this project, built from a copy, since a build leaves folders where it works."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip(sys.executable, "wheel", "--no-build-isolation", "--wheel-dir", built, source)
    [file] = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment in which the wheel is installed beside our libraries."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    pip(folder / "bin" / "python", "install", "--no-index", wheel)
    [site_packages] = folder.glob("lib/python*/site-packages")
    libraries = Path(pytest.__file__).parents[1]
    (site_packages / "libraries.pth").write_text(f"{libraries}\n")  # whose own .pth files are not read
    return folder


def pip(python, command, *words):
    """Runs pip, of the environment of the tests, for that Python."""
    words = [sys.executable, "-m", "pip", "--python", python, command, "--quiet", "--no-deps", *words]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=no_safe_path(), check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def hostile(tmp_path):
    """A working folder with packages and modules that are called as ours and as our libraries."""
    folder = tmp_path / "work"
    for name in PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("")
    for name in ("torch", "yaml", "submitit", "random"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the user')")
    return folder


SHORT = (*TINY, "train.images=16", "checkpoint.every_images=16", "eval.sample_steps=2")
"""A sweep ends with timing how long its models take to generate an image, in so many steps."""


def write_spec(folder, *seeds):
    """A spec file of short runs that differ in the seed."""
    settings = {name: {"value": value} for name, value in (one.split("=") for one in SHORT)}
    spec = {"program": "ecdit", "method": "grid", "parameters": {**settings, "seed": {"values": list(seeds)}}}
    (folder / "spec.yaml").write_text(json.dumps(spec))
    return str(folder / "spec.yaml")


def variables_of(rank):
    """What launchers tell a task of two."""
    return {name: value.format(rank=rank) for launcher in RANKS.values() for name, value in launcher.items()}


def no_safe_path():
    """The environment of a user who has set nothing."""
    return {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def execute(command, folder, **variables):
    """The command in that working folder, to its end."""
    return subprocess.run(
        [*map(str, command)], cwd=folder, env={**no_safe_path(), **variables}, capture_output=True, text=True,
        timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip


def worlds(out):
    """The number of processes of each run of a sweep, all of which must be done."""
    runs = [RunDir(folder) for folder in sorted((out / "runs").iterdir())]
    assert [run.read_status().state for run in runs] == ["done"] * len(runs)
    return sorted(run.read_run().world for run in runs)


@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
def test_modules_of_the_working_folder_hide_nothing_from_the_runs_of_a_sweep(installed, hostile, tmp_path):
    """A run is forked from the preloaded server, and one is started by torchrun; the timing is a process too."""
    ecdit, spec = installed / "bin" / "ecdit", write_spec(tmp_path, 0)
    forked = execute([ecdit, "sweep", spec, "--out", tmp_path / "one"], hostile)
    assert forked.returncode == 0, forked.stderr
    assert "was not measured" not in forked.stderr
    assert worlds(tmp_path / "one") == [1]
    launched = execute(
        [ecdit, "sweep", spec, "parallel.world=2", "--no-calibration", "--out", tmp_path / "two"], hostile
    )
    assert launched.returncode == 0, launched.stderr
    assert worlds(tmp_path / "two") == [2]


@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
@pytest.mark.parametrize("program", ["--no-python ecdit", "-m ecdit_cli"])
def test_torchrun_trains_where_other_packages_have_its_names(installed, hostile, tmp_path, program):
    """`-m` looks for `ecdit_cli` in the working folder too, and only for it. How many processes start is no matter."""
    *option, name = program.split()
    if "-m" in option:
        shutil.rmtree(hostile / "ecdit_cli")
    torchrun = [installed / "bin" / "python", "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    words = [*torchrun, *option, name, "train", *SHORT, "--run-dir", tmp_path / "run"]
    done = execute(words, hostile, PATH=f"{installed / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert RunDir(tmp_path / "run").read_status().state == "done"
    assert RunDir(tmp_path / "run").read_run().world == 1


def test_the_script_of_slurm_trains_where_other_packages_have_its_names(installed, hostile, tmp_path):
    """sbatch keeps the script, which is then executed as Slurm would on a node: in the folder of its submission."""
    programs = tmp_path / "bin"
    programs.mkdir()
    answers = {
        "sbatch": f'cp "$1" {tmp_path}/script.sh && echo Submitted batch job 7',
        "scontrol": "echo MaxArraySize = 1001",
        "squeue": "true",
        "srun": 'while [ "$1" != -u ]; do last=$1; shift; done; exec "$last" "$@"',  # its own options end before Python
    }
    for name, answer in answers.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    (tmp_path / "cluster.yaml").write_text("{time: '10', cpus_per_task: 1}")
    words = ["sweep", write_spec(tmp_path, 0), "--out", tmp_path / "out", "--executor", "slurm"]
    words += ["--cluster", tmp_path / "cluster.yaml", "--no-calibration"]
    done = execute([installed / "bin" / "ecdit", *words], hostile, **path)
    assert done.returncode == 0, done.stderr
    done = execute(["bash", tmp_path / "script.sh"], hostile, SLURM_JOB_ID="7", SLURM_PROCID="0", **path)
    assert done.returncode == 0, done.stderr
    assert worlds(tmp_path / "out") == [1]


def test_the_module_works_where_other_packages_have_its_names(installed, hostile):
    shutil.rmtree(hostile / "ecdit_cli")
    done = execute([installed / "bin" / "python", "-m", "ecdit_cli", "presets", "--json"], hostile)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize("command", ["python -m ecdit_cli", "ecdit"])
def test_a_package_on_the_path_of_modules_that_has_the_name_of_ours_is_named(installed, hostile, command):
    shutil.rmtree(hostile / "ecdit_cli")
    program, *words = command.split()
    done = execute([installed / "bin" / program, *words, "presets"], hostile, PYTHONPATH=str(hostile))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: Python finds the package 'experiments' in '{hostile}/experiments', and that of ")
    assert line.endswith("Take the folder of the other 'experiments' off PYTHONPATH, or rename it.")


@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
def test_two_tasks_of_a_launcher_that_start_a_sweep_share_its_runs(tmp_path):
    """Each has the variables of all launchers: where one of them is taken for a rank, it waits for the other."""
    spec = write_spec(tmp_path, 0, 1)
    command = [sys.executable, "-m", "ecdit_cli", "sweep", spec, "--out", str(tmp_path / "out"), "--no-calibration"]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**environment(), **variables_of(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    talk = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], talk
    folders = sorted((tmp_path / "out" / "runs").iterdir())
    assert [RunDir(folder).read_status().state for folder in folders] == ["done"] * 2
    assert [RunDir(folder).read_run().world for folder in folders] == [1, 1]
    assert [RunDir(folder).log.read_text().count("importing torch") for folder in folders] == [1, 1]


@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
def test_the_timing_of_a_dry_run_waits_for_no_rank(tmp_path):
    command = [sys.executable, "-m", "ecdit_cli", "sweep", write_spec(tmp_path, 0), "--dry-run", "--json"]
    done = subprocess.run(
        command, env={**environment(), **variables_of(0)}, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["seconds"] > 0
