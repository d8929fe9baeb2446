"""Brings all processes of a run together before anything is built, and checks that they agree.

They connect to the store that the launcher named (`MASTER_ADDR`, `MASTER_PORT`) and compare versions, settings and run
folder as plain strings, so that this works even between ranks whose PyTorch or DeepSpeed differ. From then on they
watch each other (`watchdog.py`), also while the process group is made, which alone would wait half an hour for a
missing rank. With one process there is nothing to do.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from torch.distributed import DistError, init_process_group
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from experiments.distributed.launchers import leave_it_to_the_speaker
from experiments.distributed.watchdog import Watchdog
from experiments.errors import ConfigError, RunFailedError
from experiments.records.provenance import host_name
from experiments.records.record_types import RunRecord
from experiments.records.run_folder import RunDir
from experiments.records.storage import storage_errors
from experiments.settings_id import dotted

MEETING_SECONDS = 300.0
"""Ranks wait this long for each other, since nodes start at different times and may import from a slow disk."""
FOLDER_SECONDS = 20.0
"""A shared disk may take this long to show a new file to another node."""
VERDICT_SECONDS = 10.0
"""Rank 0, whose process serves the store, waits this long for the others to read why it ends."""
SAME_VERSION = ("torch", "deepspeed", "ecdit")
COMMIT = "git commit"
INTERFACE = "GLOO_SOCKET_IFNAME"
Facts = dict[str, str]


@dataclass(frozen=True)
class Meeting:
    """The connection between the processes of this run. `store` and `watchdog` are None for a single process."""

    rank: int = 0
    world: int = 1
    store: Store | None = None
    watchdog: Watchdog | None = None

    def make_group(self, backend: str) -> None:
        """Makes the process group over the store of the meeting; does nothing for a single process. Collective."""
        if self.store is not None:
            # NCCL's own timeout is 10 minutes, in which rank 0 may not have judged its samples.
            init_process_group(
                backend, store=PrefixStore("group", self.store), rank=self.rank, world_size=self.world,
                timeout=default_pg_timeout,
            )  # fmt: skip

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Runs the watchdog within this context: a rank that goes silent ends all other processes."""
        if self.watchdog is None:
            yield
            return
        with self.watchdog:
            yield

    @contextlib.contextmanager
    def ending(self, end: Callable[[str], None]) -> Iterator[None]:
        """Calls `end` with the reason before the watchdog ends this process, while this context is active."""
        if self.watchdog is None:
            yield
            return
        with self.watchdog.ending(end):
            yield


def meet(run_dir: RunDir, record: RunRecord, tell: Callable[[str], None]) -> Meeting:
    """Waits for all ranks and compares their versions, settings and run folders. Collective.

    The watchdog calls `tell` with the reason if it ends this process. Raises `ConfigError` on rank 0, which reports for
    all, where a rank differs; the other ranks exit silently with the same code. Raises `RunFailedError` when a rank
    does not come.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Meeting()
    choose_interface(os.environ)
    with _everyone_comes(world):
        store = next(rendezvous("env://", rank, world, timeout=timedelta(seconds=MEETING_SECONDS)))[0]
        table = PrefixStore("meeting", store)
        ranks = _present(table, run_dir, facts_of(record), rank, world)
        if rank == 0:
            table.set("trouble", json.dumps(first_trouble(ranks)))
        trouble = json.loads(table.get("trouble").decode())
        if trouble is not None:
            table.set(f"read/{rank}", "")
    if trouble is not None:
        if rank != 0:
            leave_it_to_the_speaker(ConfigError.exit_code)
        with contextlib.suppress(DistError):  # a rank that has ended meanwhile does not read it
            table.wait([f"read/{other}" for other in range(world)], timedelta(seconds=VERDICT_SECONDS))
        raise ConfigError(*trouble)
    store.set_timeout(default_pg_timeout)
    names = [str(one) for one in ranks]
    return Meeting(rank, world, store, Watchdog(PrefixStore("watchdog", store), rank, names, tell))


@dataclass(frozen=True)
class Rank:
    """The report of a process about itself.

    `folder` is the path of its run folder, and `sees_folder` says whether that is the same folder as rank 0's.
    """

    number: int
    host: str
    facts: Facts
    folder: str
    sees_folder: bool

    def __str__(self) -> str:
        """Returns the name of this rank in messages."""
        return f"rank {self.number} on {self.host}"


def facts_of(record: RunRecord) -> Facts:
    """Returns what must be equal on every rank: versions first, then all settings by their dotted names."""
    facts = {name: record.versions[name] for name in SAME_VERSION if name in record.versions}
    facts["python"] = ".".join(record.versions["python"].split(".")[:2])
    if record.git_commit is not None:
        facts[COMMIT] = record.git_commit
    return facts | {key: str(value) for key, value in dotted(record.config)}


def first_trouble(ranks: Sequence[Rank]) -> tuple[str, str] | None:
    """Returns the first difference between a rank and rank 0 with the way out, or None where all agree.

    Commits are compared only where both are known, since an installed package has none.
    """
    first, *others = ranks
    for rank in others:
        for key in {**first.facts, **rank.facts}:
            here, there = first.facts.get(key), rank.facts.get(key)
            if here == there or (key == COMMIT and None in (here, there)):
                continue
            is_version = key in (*SAME_VERSION, "python", COMMIT)
            hint = "Install the same on every node." if is_version else "Start every rank with the same settings."
            return f"{key} is {there or 'missing'} on {rank} and {here or 'missing'} on {first}.", hint
        if not rank.sees_folder:
            return (
                f"{rank} does not see the run folder of {first}, {first.folder}: it looked in {rank.folder}.",
                "Give a --run-dir on a disk that all nodes share.",
            )
    return None


def choose_interface(environment: MutableMapping[str, str]) -> None:
    """Sets the variable that tells gloo to use the network interface which leads to `MASTER_ADDR`.

    By default gloo uses the address of the host's own name. That is often a loopback address (127.0.1.1 on Debian),
    which no other node reaches.
    """
    if environment.get(INTERFACE):
        return
    try:
        with socket.socket(*_datagram(environment["MASTER_ADDR"])[:2]) as probe:
            probe.connect(_datagram(environment["MASTER_ADDR"])[2])  # UDP: this picks a route and sends nothing
            address = str(probe.getsockname()[0])
    except OSError:  # the rendezvous will fail with a better message
        return
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            environment[INTERFACE] = name


def _datagram(host: str) -> tuple[int, int, Any]:
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    return family, kind, address


def _present(table: Store, run_dir: RunDir, facts: Facts, rank: int, world: int) -> list[Rank]:
    """Returns the reports of all ranks, on every rank. Collective.

    Rank 0 creates a file with a random name in its run folder. The others look for it to learn whether they see the
    same folder; equal paths on different disks would not show this.
    """
    with _token(run_dir) if rank == 0 else contextlib.nullcontext("") as token:
        if rank == 0:
            table.set("token", token)
        sees = rank == 0 or _appears(run_dir.token(table.get("token").decode()))
        me = Rank(rank, host_name(), facts, str(run_dir.path.resolve()), sees)
        table.set(f"rank/{rank}", json.dumps(asdict(me)))
        answers = table.multi_get([f"rank/{other}" for other in range(world)])
    return [Rank(**json.loads(answer.decode())) for answer in answers]


@contextlib.contextmanager
def _token(run_dir: RunDir) -> Iterator[str]:
    """Creates a file with a random name in the run folder, yields the name and removes the file at the end."""
    token = secrets.token_hex(8)
    with storage_errors(run_dir.path):
        run_dir.token(token).touch()
    try:
        yield token
    finally:
        run_dir.token(token).unlink(missing_ok=True)


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + FOLDER_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def _everyone_comes(world: int) -> Iterator[None]:
    """Turns PyTorch's errors of a failed rendezvous into a `RunFailedError` of one line with the way out."""
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        yield
    except (DistError, ValueError) as error:
        if "EADDRINUSE" in str(error):
            raise RunFailedError(f"{place} is taken by another program.", "Set another MASTER_PORT.") from error
        raise RunFailedError(
            f"The {world} processes of this run did not meet at {place}: {' '.join(str(error).split())[:160]}",
            "See that all of them started, and that every node reaches that address.",
        ) from error
