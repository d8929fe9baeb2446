"""Identifies a process uniquely over machines and time, and tells whether it is still alive.

Process ids are reused, and setting the clock can make a process look younger than the files it wrote. A process is
therefore known by its id, the boot of its machine, and its start in ticks since boot, which no clock change moves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import psutil

from experiments.environment import num_restarts
from experiments.records.provenance import host_name


@dataclass(frozen=True)
class Owner:
    """Identifies one process uniquely over machines and time. `began` is in clock ticks since `boot`.

    `job` is the Slurm job, if any, and `job_start` is how often that job had been requeued when the process began.
    """

    host: str
    machine: str
    boot: str
    processes: str
    pid: int
    began: str
    job: str | None = None
    job_start: int = 0

    @classmethod
    def of(cls, pid: int | None = None) -> Self:
        """Returns the identity of this process, or of process `pid` on this machine."""
        pid = os.getpid() if pid is None else pid
        job, job_start = _slurm_job()
        return cls(*_this_machine(), pid=pid, began=_began(pid) or "", job=job, job_start=job_start)

    @property
    def is_local(self) -> bool:
        """Says whether its process id is valid here: same machine and same process namespace (containers)."""
        here = _this_machine()
        return (self.host, self.machine, self.processes) == (here[0], here[1], here[3])

    def is_dead(self) -> bool | None:
        """Says whether the process has surely ended; None where that cannot be known from here.

        A Slurm job runs only once at a time. Processes of an earlier start of this same job are therefore dead, on
        whichever node they were; other processes of the present start, on other nodes, are not.
        """
        if not self.is_local:
            job, job_start = _slurm_job()
            return True if job is not None and self.job == job and self.job_start < job_start else None
        return self.boot != _this_machine()[2] or _began(self.pid) != self.began

    def __str__(self) -> str:
        """Returns a description of the process for messages."""
        return f"process {self.pid} on {self.host}"


def _slurm_job() -> tuple[str | None, int]:
    """Returns the Slurm job that this process belongs to, and how often it has been requeued."""
    return os.environ.get("SLURM_JOB_ID"), num_restarts()


@cache
def _this_machine() -> tuple[str, str, str, str]:
    """Returns host name, machine id, boot id, and process namespace."""
    return (
        host_name(),
        _text_of("/etc/machine-id"),
        _text_of("/proc/sys/kernel/random/boot_id"),
        _link("/proc/self/ns/pid"),
    )


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Returns the start time of a process in clock ticks since boot; None where it does not exist or has ended."""
    try:
        # The second field is the program's name in parentheses and may hold blanks, so the fields after it are counted.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        pass
    except OSError:
        return None
    if Path("/proc/self/stat").exists():
        return None
    try:  # macOS has no /proc
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
