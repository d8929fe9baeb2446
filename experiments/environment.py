"""Environment variables of launchers, and the environment of the processes that a command starts.

A launcher (torchrun, srun, mpirun, DeepSpeed's, Kubeflow's) tells each of its processes in variables which rank it has
among how many. `experiments/training/launch.py` reads them for the commands that several processes share; no other
process may see them, since PyTorch, DeepSpeed and MPI would then wait for ranks that never come.
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
    # Slurm, about this task; those about the job stay: they say whose claims are dead (`records/processes.py`)
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS", "SLURM_TASK_PID", "SLURM_STEPID", "SLURM_NTASKS",
    "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_LAUNCH_NODE_IPADDR",
})  # fmt: skip
RANK_PREFIXES = (
    "TORCHELASTIC_", "PET_",  # torchrun's own state, and its options as variables (Kubeflow: PET_NNODES)
    "SLURM_STEP_", "SLURM_SRUN_COMM_",
    "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMIX_", "PMI_", "MPI_LOCAL",  # Open MPI, MVAPICH, MPICH and Intel MPI
)  # fmt: skip


def is_of_a_rank(name: str) -> bool:
    """Whether the variable tells a process which rank it has, or where the ranks of its launcher meet."""
    return name in RANK_VARIABLES or name.startswith(RANK_PREFIXES)


def without_ranks(environment: Mapping[str, str], kept_prefixes: Sequence[str] = ()) -> dict[str, str]:
    """`environment` without what launchers say of ranks, except for names that begin with one of `kept_prefixes`."""
    kept = tuple(kept_prefixes)
    return {name: value for name, value in environment.items() if name.startswith(kept) or not is_of_a_rank(name)}


def forget_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove what launchers say of ranks, for a process that works alone."""
    for name in [name for name in environment if is_of_a_rank(name)]:
        del environment[name]


def num_restarts(environment: Mapping[str, str] = os.environ) -> int:
    """How often Slurm has queued this job again; 0 where it does not say so in a number."""
    text = environment.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def child_environment(own: Mapping[str, str] | None = None, kept_ranks: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a Python process that a command starts: no ranks, a safe path, and `own` on top.

    A safe path leaves out the working folder, where a user may have an `experiments` or a `torch` of his own. Where our
    own packages were found there, in a checkout that was not installed, it is named. `kept_ranks`: prefixes of
    variables of ranks to keep.
    """
    environment = without_ranks(os.environ, kept_ranks)
    root = str(Path(__file__).parents[1])
    if root in sys.path[:1]:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONSAFEPATH": "1", **(own or {})}
