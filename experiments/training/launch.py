"""Ranks from Slurm: what torchrun would set, for a process that srun started without it.

Slurm says who a process is in `SLURM_*`; PyTorch and DeepSpeed read `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`
and `MASTER_PORT`. What is set already (by torchrun, or by a user whose first node has another name on the fast network)
is left as it is. Torch-free: it runs before the settings of a run are read, because `parallel.world` depends on it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from experiments.errors import ConfigError

FIRST_PORT, NUM_PORTS = 10_000, 20_000
"""Below the ports that Linux deals out by itself (32768 and up)."""
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def adopt_slurm_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add the launcher's variables to `environment` where srun started several processes and no launcher followed."""
    for name, value in slurm_ranks(environment).items():
        environment.setdefault(name, value)


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT` of this process of a Slurm step.

    Empty outside of a step, in a step of one process (which needs no other), and where a launcher has set them. The
    batch script itself is no step, though Slurm tells it of tasks: a plain `ecdit train` in it is one process.
    """
    if "WORLD_SIZE" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return {}
    try:
        nodes, job = environment["SLURM_STEP_NODELIST"], int(environment["SLURM_JOB_ID"])
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": _local_rank(environment),
            "MASTER_ADDR": first_host(nodes),
            "MASTER_PORT": str(FIRST_PORT + (job + int(environment["SLURM_STEP_ID"])) % NUM_PORTS),
        }
    except KeyError as missing:
        raise ConfigError(
            f"Slurm started {environment['SLURM_STEP_NUM_TASKS']} processes but did not set {missing.args[0]}.",
            "Start with srun, or use torchrun.",
        ) from missing


def first_host(node_list: str) -> str:
    """The first name in Slurm's notation: `n3` of `n[3-5,8],m1`, `rack0-n03` of `rack[0-1]-n[03-09]`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", node_list)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group()) if first else node_list


def _local_rank(environment: Mapping[str, str]) -> str:
    """Number of the device to use: the place on the node, unless Slurm shows this process one device alone."""
    visible = next((environment[name] for name in VISIBLE_DEVICES if environment.get(name)), "")
    return "0" if visible and "," not in visible else environment["SLURM_LOCALID"]
