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
def installed(tmp_path_factory):
    """The `ecdit` of an environment that holds copies of the packages, as a wheel does, and our libraries."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, site_packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    libraries = Path(pytest.__file__).parents[1]
    (site_packages / "libraries.pth").write_text(f"{libraries}\n")  # whose own .pth files are not read
    script = folder / "bin" / "ecdit"
    script.write_text(f"#!{folder}/bin/python\nfrom ecdit_cli.app import main\nmain()\n")
    script.chmod(0o755)
    return folder


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


def write_spec(folder, *seeds):
    settings = {name: {"value": value} for name, value in (one.split("=") for one in TINY)}
    short = {"train.images": {"value": 16}, "checkpoint.every_images": {"value": 16}, "seed": {"values": list(seeds)}}
    spec = {"program": "ecdit", "method": "grid", "parameters": {**settings, **short}}
    (folder / "spec.yaml").write_text(json.dumps(spec))
    return str(folder / "spec.yaml")


def no_safe_path():
    """The environment of a user who has set nothing."""
    return {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}


@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
@pytest.mark.parametrize("settings", [[], ["parallel.world=2"]], ids=["preloaded", "torchrun"])
def test_modules_of_the_working_folder_hide_nothing_from_the_runs_of_a_sweep(installed, hostile, tmp_path, settings):
    command = [installed / "bin" / "ecdit", "sweep", write_spec(tmp_path, 0), *settings, "--out", tmp_path / "out"]
    done = subprocess.run(
        command, cwd=hostile, env=no_safe_path(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "out" / "runs").iterdir()
    assert RunDir(folder).read_status().state == "done"
    assert RunDir(folder).read_run().world == (2 if settings else 1)
    assert "was not measured" not in done.stderr


def test_the_module_works_where_other_packages_have_its_names(installed, hostile):
    shutil.rmtree(hostile / "ecdit_cli")
    command = [installed / "bin" / "python", "-m", "ecdit_cli", "presets", "--json"]
    done = subprocess.run(
        command, cwd=hostile, env=no_safe_path(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.timeout(2 * TIMEOUT_SECONDS)
@pytest.mark.parametrize("launcher", RANKS)
def test_two_tasks_of_a_launcher_that_start_a_sweep_share_its_runs(launcher, tmp_path):
    command = [sys.executable, "-m", "ecdit_cli", "sweep", write_spec(tmp_path, 0, 1), "--out", str(tmp_path / "out")]
    started = [
        subprocess.Popen(
            [*command, "--no-calibration"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**environment(), **{name: value.format(rank=rank) for name, value in RANKS[launcher].items()}},
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
    ranks = {name: value.format(rank=0) for launcher in RANKS.values() for name, value in launcher.items()}
    done = subprocess.run(
        command, env={**os.environ, **environment(), **ranks}, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["seconds"] > 0
