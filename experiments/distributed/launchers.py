"""Sets the rank variables that torchrun would set, for processes that srun or mpirun started.

PyTorch and DeepSpeed read `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`. torchrun and DeepSpeed's
launcher set them. Slurm describes a process in `SLURM_*`, Open MPI in `OMPI_COMM_WORLD_*`, MPICH and Intel MPI in
`PMI_*`. Variables that are set already (by a launcher, or by a user whose first node has another name on the fast
network) are left as they are. This module does not import torch: it runs before the settings of a run are read, since
`parallel.world` depends on it.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Mapping, MutableMapping
from typing import NoReturn

from experiments.errors import ConfigError
from experiments.text import printable, shortened

FIRST_PORT, NUM_PORTS = 10_000, 20_000
"""The range of ports for rendezvous, below the ephemeral ports of Linux (32768 and up)."""
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
SPEAKING_SECONDS = 2.0
NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
MAX_PROCESSES, MAX_PORT = 10_000_000, 65_535
MAX_ID = 2**32 - 1
"""The largest id of a job or step: Slurm's ids have 32 bits."""
OF_A_TASK = ("SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID")
"""The variables of srun's tasks that are needed here."""
WAY_OUT = "Unset it for one process, or start with torchrun, srun, mpirun or deepspeed, which set it."


def adopt_ranks(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Adds rank variables to `environment` where several processes were started and no launcher has set them.

    Returns whether this process reports errors in the command line that it shares with the others. That is one of all
    processes under srun or mpirun, and one per node under a launcher that is started on every node. A process without
    others always reports them, whatever the variables of an earlier launch say. Raises `ConfigError` where the
    variables announce several processes but not how they find each other.
    """
    found = launched_ranks(environment)
    for name, value in found.items():
        environment.setdefault(name, value)
    _check_complete(environment)
    is_alone = _num_processes({"WORLD_SIZE": "1", **environment}, "WORLD_SIZE") == 1
    return is_alone or environment.get("RANK" if found else "LOCAL_RANK", "0") == "0"


def work_share(environment: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """Returns rank, number of processes and local rank, for work that processes share without communicating.

    Incomplete or invalid variables are no error here: the process then works alone, as (0, 1, 0).
    """
    try:
        known = {"LOCAL_RANK": "0", **launched_ranks({"MASTER_ADDR": "", **environment}), **environment}
        world = _num_processes(known, "WORLD_SIZE")
        return int(_rank(known, "RANK", world)), world, int(_rank(known, "LOCAL_RANK", world))
    except ConfigError:
        return 0, 1, 0


def leave_it_to_the_speaker(exit_code: int) -> NoReturn:
    """Exits silently because another process reports the error.

    It waits first, since launchers kill all other processes as soon as one has ended.
    """
    time.sleep(SPEAKING_SECONDS)
    raise SystemExit(exit_code)


def launched_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the rank variables of this process; the result is empty where a launcher has set them.

    MPI is asked before Slurm: within a Slurm job MPIs start their daemons through srun, and the Slurm variables then
    describe the daemons.
    """
    if "WORLD_SIZE" in environment:
        return {}
    if "OMPI_COMM_WORLD_RANK" in environment:
        return open_mpi_ranks(environment)
    is_slurm_task = environment.get("PMI_SIZE") == environment.get("SLURM_STEP_NUM_TASKS")
    if "PMI_RANK" in environment and "MPI_LOCALRANKID" in environment and not is_slurm_task:
        return hydra_ranks(environment)
    return slurm_ranks(environment)


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the rank variables of a process in a Slurm step; empty outside of a step and in a step of one process.

    The batch script itself is no step, although Slurm sets numbers of tasks there: a plain `ecdit train` in it is one
    process. Raises `ConfigError` for missing or invalid variables.
    """
    if "WORLD_SIZE" in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return {}
    world = _num_processes(environment, "SLURM_STEP_NUM_TASKS")
    if world == 1:
        return {}
    missing = next((name for name in OF_A_TASK if name not in environment), None)
    if missing is not None:
        raise ConfigError(
            f"Slurm started {world} processes but did not set {missing}.", "Start with srun, or use torchrun."
        )
    # Steps of one job may run at once on the same node, so the port depends on job and step.
    job = _number(environment, "SLURM_JOB_ID", "the id of a job", 0, MAX_ID)
    step = _number(environment, "SLURM_STEP_ID", "the id of a step", 0, MAX_ID)
    return {
        "RANK": _rank(environment, "SLURM_PROCID", world),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": _local_rank(environment, "SLURM_LOCALID", world),
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(FIRST_PORT + (job + step) % NUM_PORTS),
    }


def open_mpi_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the rank variables of a process that Open MPI's mpirun (4 and 5) started; empty for a single process.

    The port is a hash of the job's name, which all its processes know and no other job has.
    """
    world = _num_processes(environment, "OMPI_COMM_WORLD_SIZE")
    if world == 1:
        return {}
    here = _num_processes({"OMPI_COMM_WORLD_LOCAL_SIZE": str(world), **environment}, "OMPI_COMM_WORLD_LOCAL_SIZE")
    return _one_node(environment, world, here, "mpirun -x MASTER_ADDR=") | {
        "RANK": _rank(environment, "OMPI_COMM_WORLD_RANK", world),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": _local_rank(environment, "OMPI_COMM_WORLD_LOCAL_RANK", world),
        "MASTER_PORT": _port(environment.get("PMIX_NAMESPACE", "")),
    }


def hydra_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the rank variables of a process that mpiexec of MPICH or Intel MPI started; empty for a single process.

    These set no name of the job. On one node the port is a hash of the common parent process. On several nodes all jobs
    get the same port unless `MASTER_PORT` is set.
    """
    world = _num_processes(environment, "PMI_SIZE")
    if world == 1:
        return {}
    here = _num_processes({"MPI_LOCALNRANKS": "1", **environment}, "MPI_LOCALNRANKS")
    return _one_node(environment, world, here, "mpiexec -genv MASTER_ADDR ") | {
        "RANK": _rank(environment, "PMI_RANK", world),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": _local_rank(environment, "MPI_LOCALRANKID", world),
        "MASTER_PORT": _port(str(os.getppid()) if here == world else ""),
    }


def first_host(node_list: str) -> str:
    """Returns the first host in Slurm's notation: `n3` in `n[3-5,8],m1`, `rack0-n03` in `rack[0-1]-n[03-09]`."""
    # A comma inside of brackets separates numbers and not hosts.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", node_list)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group()) if first else node_list


def _one_node(environment: Mapping[str, str], world: int, here: int, option: str) -> dict[str, str]:
    """Returns `MASTER_ADDR` where all processes are on this node, and nothing where the user has set it.

    Raises `ConfigError` otherwise, because MPI does not say on which node rank 0 is.
    """
    if here == world:
        return {"MASTER_ADDR": "127.0.0.1"}
    if "MASTER_ADDR" not in environment:
        raise ConfigError(
            f"MPI started {world} processes on several nodes, {here} of them here, and MASTER_ADDR is not set.",
            f"Name the node of rank 0, the first of the hostfile: {option}NODE ...",
        )
    return {}


def _port(job: str) -> str:
    return str(FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS)


def _local_rank(environment: Mapping[str, str], name: str, world: int) -> str:
    """Returns the number of the device to use: the rank on the node, or 0 where only one device is visible."""
    visible = next((environment[name] for name in VISIBLE_DEVICES if environment.get(name)), "")
    return "0" if visible and "," not in visible else _rank(environment, name, world)


def _check_complete(environment: Mapping[str, str]) -> None:
    """Raises `ConfigError` where rank variables are invalid, or are incomplete for several processes."""
    world = _num_processes(environment, "WORLD_SIZE") if "WORLD_SIZE" in environment else 1
    if "LOCAL_WORLD_SIZE" in environment:
        _num_processes(environment, "LOCAL_WORLD_SIZE")
    if "LOCAL_RANK" in environment:
        _number(environment, "LOCAL_RANK", "a rank", 0, MAX_PROCESSES)
    given = "WORLD_SIZE" if "WORLD_SIZE" in environment else "RANK"
    missing = [name for name in ("WORLD_SIZE", *NEEDED) if not environment.get(name)]
    if missing and (world > 1 or (given == "RANK" and "RANK" in environment)):
        raise ConfigError(
            f"{given}={_shown(environment[given])} is set but {' and '.join(missing)} not.",
            f"Start with torchrun, srun, mpirun or deepspeed, which set it, or unset {given} for one process.",
        )
    if "RANK" in environment:
        _rank(environment, "RANK", world)
    if world > 1:
        _number(environment, "MASTER_PORT", "a port from 1 to 65535", 1, MAX_PORT)


def _num_processes(environment: Mapping[str, str], name: str) -> int:
    return _number(environment, name, "a number of processes", 1, MAX_PROCESSES)


def _rank(environment: Mapping[str, str], name: str, world: int) -> str:
    """Returns the variable as text after checking that it is a rank. Raises `ConfigError` where it is not."""
    return str(_number(environment, name, f"a rank of {world} process(es), from 0 to {world - 1}", 0, world - 1))


def _number(environment: Mapping[str, str], name: str, what: str, lowest: int, highest: int) -> int:
    """Returns the variable as a whole number. Raises `ConfigError`, which says that it is not `what`, otherwise."""
    text = environment.get(name)
    if text is None:
        raise ConfigError(f"Several processes were started but {name} is not set.", "Use torchrun, which sets all.")
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID)) and lowest <= int(text) <= highest:
        return int(text)
    raise ConfigError(f"{name}={_shown(text)!r} is not {what}.", WAY_OUT)


def _shown(text: str) -> str:
    return shortened(printable(text), 40)
