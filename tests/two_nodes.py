"""Two nodes on this machine: network namespaces joined by a cable, each with an address of its own.

Processes of one reach the other only over the cable, and neither reaches anything else. Needs root and `ip`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.preloaded import ForkedRun, server
from tests.system_packages import program
from tests.training_runs import environment, server_of, train_command

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29511
"""Of a launcher; the namespaces have ports of their own."""


@dataclass(frozen=True)
class Nodes:
    """The names of the two namespaces; `cable` is the name of the interface in each."""

    names: tuple[str, str]
    cable: str = "cable"

    def enter(self, node: int) -> list[str]:
        """What to put before a command so that it runs on that node."""
        return ["ip", "netns", "exec", self.names[node]]

    def cut(self) -> None:
        """Pull the cable out."""
        subprocess.run(["ip", "-n", self.names[0], "link", "set", self.cable, "down"], check=True)

    def join(self) -> None:
        """Put it back."""
        subprocess.run(["ip", "-n", self.names[0], "link", "set", self.cable, "up"], check=True)


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """The nodes; the test is skipped, with the reason, where they cannot be made."""
    if program("ip") is None:
        pytest.skip("NOT TESTED ON TWO NODES: ip is not installed (Debian: iproute2)")
    nodes = Nodes((f"ecdit{os.getpid()}a", f"ecdit{os.getpid()}b"))
    try:
        _make(nodes)
        yield nodes
    finally:
        for name in nodes.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _make(nodes: Nodes) -> None:
    first, second = nodes.names
    commands = [["netns", "add", first], ["netns", "add", second]]
    ends = ["link", "add", nodes.cable, "netns", first, "type", "veth", "peer", "name", nodes.cable, "netns", second]
    commands.append(ends)
    for name, address in zip(nodes.names, ADDRESSES, strict=True):
        commands.append(["-n", name, "addr", "add", f"{address}/24", "dev", nodes.cable])
        commands += [["-n", name, "link", "set", interface, "up"] for interface in ("lo", nodes.cable)]
    for command in commands:
        done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"NOT TESTED ON TWO NODES: ip {' '.join(command)}: {done.stderr.strip()}")


@dataclass
class Ranks:
    """The processes of one run, started without a launcher, as srun would start them."""

    processes: Sequence[subprocess.Popen[str] | ForkedRun]

    def ends(self, seconds: float = 120.0) -> list[tuple[int, str]]:
        """Exit code and talk of each."""
        talk = [process.communicate(timeout=seconds)[1] for process in self.processes]
        return [(process.returncode, said) for process, said in zip(self.processes, talk, strict=True)]

    def kill(self) -> None:
        """Whatever is left of them."""
        for process in self.processes:
            process.kill()
            process.communicate()


def start_ranks(
    folder: Path,
    *settings: str,
    options: Sequence[str] = ("--no-progress",),
    nodes: Nodes | None = None,
    before: Mapping[int, Sequence[str]] | None = None,
    changed: Mapping[int, Mapping[str, str]] | None = None,
    extra: Mapping[int, Sequence[str]] | None = None,
) -> Ranks:
    """Two ranks of a tiny run, one on each of `nodes` or both here.

    By rank: variables `changed`, `extra` settings, and words `before` its command. Each rank is forked from a process
    that has imported everything, but for one with an entry in `before`, whose command is started.
    """
    master, port = ADDRESSES[0] if nodes else "127.0.0.1", _free_port()
    processes: list[subprocess.Popen[str] | ForkedRun] = []
    for rank in range(2):
        ranks = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": master, "MASTER_PORT": port}
        variables = {**environment(), **ranks, **(changed or {}).get(rank, {})}
        command = train_command(folder, *settings, *(extra or {}).get(rank, ()), options=options)
        if before is not None and rank in before:
            words = [*(nodes.enter(rank) if nodes else ()), *before[rank], *command]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=variables))
        else:
            network = nodes.names[rank] if nodes else ""
            processes.append(server_of(command).start(command[3:], variables, network=network))
    return Ranks(processes)


def start_together(function: str, *words: str, world: int) -> Ranks:
    """A test's own program, named as "module:name", as `world` ranks forked from a process that has imported torch."""
    together = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    together["MASTER_PORT"] = _free_port()
    return Ranks([
        server().start(words, {**environment(), **together, "RANK": rank, "LOCAL_RANK": rank}, function)
        for rank in map(str, range(world))
    ])  # fmt: skip


def train_on_two(folder: Path, *settings: str, options: Sequence[str] = ("--no-progress",)) -> str:
    """Trains a tiny run to its end on two ranks of this machine; returns what they said on stderr."""
    ended = start_ranks(folder, *settings, options=options).ends()
    talk = "".join(said for _, said in ended)
    assert [code for code, _ in ended] == [0, 0], talk
    return talk


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def torchrun(folder: Path, node: int, *settings: str) -> list[str]:
    """What a user types on each of the two nodes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    place = ["--node-rank", str(node), "--master-addr", ADDRESSES[0], "--master-port", str(PORT)]
    return [*launcher, *place, *train_command(folder, *settings)[1:]]
