"""A real Slurm on this machine, as the user who runs the tests: munged, slurmctld, and a slurmd for each of its nodes.

Its configuration, logs and sockets lie in a folder of its own and its ports are free ones, so that it disturbs neither
a Slurm that is installed nor a second one of these. All nodes are this machine: a run of two nodes really goes through
srun and sockets, but not from one machine to another.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.system_packages import NotInstalledError, install, program

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
PACKAGES = ("slurm-wlm", "munge")
MAY_INSTALL = "ECDIT_INSTALL_SLURM"
NODES = ("n1", "n2", "n3")
START_SECONDS = 30.0

# cred_expire: a requeued job waits until its old credential has expired, 2 minutes unless told.
# `urgent` preempts `main`, whose jobs have 30 s from SIGTERM on. `aside` is for a job that takes no processor.
CONFIG = """
ClusterName=onehost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF
PartitionName=aside Nodes=n3 PreemptMode=OFF
"""


class CannotStartError(Exception):
    """There is no Slurm on this machine, or it does not start; says why."""


def ensure_installed() -> None:
    """Install Debian's packages where they are missing, this is root, and `ECDIT_INSTALL_SLURM=1` allows it."""
    missing = [name for name in PROGRAMS if program(name) is None]
    if missing:
        try:
            install(missing, PACKAGES, MAY_INSTALL)
        except NotInstalledError as error:
            raise CannotStartError(str(error)) from error


class OneHost:
    """The cluster; `start` it, `stop` it. `variables` lead Slurm's commands to it.

    Partitions: `main` and, preempting it, `urgent`, of the nodes n1 and n2; `aside` of n3. One processor a node.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._answers = False

    def start(self) -> None:
        """Start the daemons and wait until all nodes are idle; a `CannotStartError` with the end of their logs."""
        self._write_config()
        # --force: a socket in a folder that others may write to (/tmp) is good enough for a test
        munge = (
            "--foreground",
            "--force",
            f"--key-file={self.folder}/munge.key",
            f"--socket={self.folder}/munge.socket",
        )
        files = (f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("pid", "log", "seed"))
        self._daemon("munged", *munge, *files)
        self._wait_until(lambda: (self.folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self._wait_until(lambda: self.answer("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * 5)
        self._answers = True

    def stop(self) -> None:
        """Cancel what is left and end the daemons, the last one started first."""
        if self._answers:
            self.answer("scancel", "--user", getpass.getuser())
        deadline = time.monotonic() + START_SECONDS
        while self._answers and self.answer("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def answer(self, *command: str) -> str:
        """What a command of Slurm prints."""
        environment = {**os.environ, **self.variables}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
        return done.stdout.strip()

    def wait_until_idle(self, partition: str = "main", seconds: float = 150.0) -> None:
        """Until no job of the partition is queued, at work or ending."""
        deadline = time.monotonic() + seconds
        while self.answer("squeue", "--noheader", "--partition", partition):
            assert time.monotonic() < deadline, self.answer("squeue", "--long")
            time.sleep(0.2)

    def _write_config(self) -> None:
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host, ports = socket.gethostname().split(".")[0], _free_ports(1 + len(NODES))
        nodes = (
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        text = CONFIG.format(
            host=host, controller_port=ports[0], user=getpass.getuser(), folder=self.folder, nodes="\n".join(nodes)
        )
        Path(self.variables["SLURM_CONF"]).write_text(text)

    def _daemon(self, name: str, *options: str) -> None:
        path = program(name)
        assert path is not None
        with (self.folder / f"{name}.out").open("ab") as output:
            environment = {**os.environ, **self.variables}
            daemon = subprocess.Popen(
                [path, *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._daemons.append(daemon)

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise CannotStartError(f"Slurm did not start ({ended or 'too slow'}): {self._last_words()}")
            time.sleep(0.1)

    def _last_words(self) -> str:
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return " | ".join(f"{log.name}: {log.read_text(errors='replace').strip()[-300:]}" for log in logs)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
