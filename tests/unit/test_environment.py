"""What commands let through to the processes that they start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from experiments.environment import child_environment, forget_ranks, num_restarts, without_ranks

OF_RANKS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR",
                 "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"),
    "Kubeflow": ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "RANK", "WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID",
             "SLURM_STEP_NODELIST"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMIX_RANK",
               "PMIX_NAMESPACE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}  # fmt: skip
"""What each launcher sets."""
OF_THE_JOB = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO"}


@pytest.mark.parametrize("launcher", OF_RANKS)
def test_a_child_gets_no_rank_of_any_launcher_and_keeps_what_is_about_the_job(launcher, monkeypatch):
    for name in OF_RANKS[launcher]:
        monkeypatch.setenv(name, "1")
    for name, value in OF_THE_JOB.items():
        monkeypatch.setenv(name, value)
    environment = child_environment({"OMP_NUM_THREADS": "3"})
    assert not environment.keys() & set(OF_RANKS[launcher])
    assert environment["OMP_NUM_THREADS"] == "3"
    assert OF_THE_JOB.items() <= environment.items()
    forget_ranks()
    assert not os.environ.keys() & set(OF_RANKS[launcher])
    assert OF_THE_JOB.items() <= os.environ.items()


def test_a_job_of_slurm_keeps_the_ranks_of_its_own_srun():
    given = {"SLURM_PROCID": "1", "MASTER_ADDR": "n1", "RANK": "0", "OMPI_COMM_WORLD_RANK": "0", "HOME": "/h"}
    assert without_ranks(given, ("SLURM_", "MASTER_")) == {"SLURM_PROCID": "1", "MASTER_ADDR": "n1", "HOME": "/h"}


def test_a_child_imports_nothing_from_the_working_folder(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the user')")
    for command in (["-m", "json.tool", "--help"], ["-c", "import json"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=child_environment(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux only")
@pytest.mark.parametrize(
    ("own", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_threads_of_a_command_sleep_soon_where_they_wait_unless_the_user_says_how(own, spins):
    program = "import sys; sys.argv[1:] = ['--version']\ntry: main()\nexcept SystemExit: import torch"
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", f"from ecdit_cli.app import main; {program}"],
        env={**others, "OMP_DISPLAY_ENV": "VERBOSE", **own}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.parametrize(("text", "number"), [("2", 2), ("abc", 0), ("", 0), ("-1", 0), ("²", 0), ("9" * 5000, 0)])
def test_a_count_of_restarts_that_is_no_number_counts_as_none(text, number):
    assert num_restarts({"SLURM_RESTART_COUNT": text}) == number
    assert num_restarts({}) == 0


def test_a_backend_of_matplotlib_that_does_not_exist_is_no_concern_of_figures(tmp_path):
    code = (
        "from ecdit_cli.app import run; run(['presets', '--json']); import matplotlib; print(matplotlib.get_backend())"
    )
    own = {**os.environ, "MPLBACKEND": "foo", "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("agg\n"), done.stderr
