"""Environment variables of launchers and of OpenMP, and the environment of the processes that a command starts.

A launcher (torchrun, srun, mpirun, DeepSpeed's, Kubeflow's) sets variables that tell each process its rank and the
number of processes. `experiments/distributed/launchers.py` reads them for the commands that several processes share;
no other process may see them, since PyTorch, DeepSpeed and MPI would then wait for ranks that never come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

RANK_VARIABLES = frozenset({
    # PyTorch, and what Kubeflow, torchrun and DeepSpeed's launcher set for it
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT",
    # Slurm sets these for a task. Those of the job stay: they tell whose locks are dead.
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS", "SLURM_TASK_PID", "SLURM_STEPID", "SLURM_NTASKS",
    "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_LAUNCH_NODE_IPADDR",
})  # fmt: skip
RANK_PREFIXES = (
    "TORCHELASTIC_", "PET_",  # torchrun's own state, and its options as variables (Kubeflow: PET_NNODES)
    "SLURM_STEP_", "SLURM_SRUN_COMM_",
    "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMIX_", "PMI_", "MPI_LOCAL",  # Open MPI, MVAPICH, MPICH and Intel MPI
)  # fmt: skip

SPINS = "1000"
"""A thread of OpenMP looks for work so often before it sleeps: for 10 to 50 microseconds, a few times a wake-up.

GNU's default of 300,000 is milliseconds. Where another process is busy, a thread that looks for so long keeps its core
from the thread that it waits for, at the end of every parallel operation.
"""


def is_of_a_rank(name: str) -> bool:
    """Returns whether the variable tells a process its rank, or where the ranks of its launcher meet."""
    return name in RANK_VARIABLES or name.startswith(RANK_PREFIXES)


def without_ranks(environment: Mapping[str, str], kept_prefixes: Sequence[str] = ()) -> dict[str, str]:
    """Returns `environment` without rank variables, except those whose names begin with one of `kept_prefixes`."""
    kept = tuple(kept_prefixes)
    return {name: value for name, value in environment.items() if name.startswith(kept) or not is_of_a_rank(name)}


def forget_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Removes the rank variables of launchers, for a process that works alone."""
    for name in [name for name in environment if is_of_a_rank(name)]:
        del environment[name]


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes threads of GNU's OpenMP sleep soon where they wait, unless the user has chosen how they wait.

    The library reads the variable when it is loaded, so that this must come before torch is imported.
    """
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = SPINS


def num_restarts(environment: Mapping[str, str] = os.environ) -> int:
    """Returns how often Slurm has requeued this job; 0 where it sets no valid number."""
    text = environment.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def child_environment(own: Mapping[str, str] | None = None, kept_ranks: Sequence[str] = ()) -> dict[str, str]:
    """Returns the environment for a Python process that a command starts: no rank variables, a safe path, and `own`.

    The safe path leaves out the working folder, where a user may have his own `experiments` or `torch`. In a checkout
    that was not installed our packages are found there, so that it is put on `PYTHONPATH`. `kept_ranks` has prefixes of
    rank variables to keep.
    """
    environment = without_ranks(os.environ, kept_ranks)
    root = str(Path(__file__).parents[1])
    if root in sys.path[:1]:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONSAFEPATH": "1", **(own or {})}
