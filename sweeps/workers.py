"""Starting the process of a run, and what can be done with one: wait for it, signal it, end it.

`PreloadedLauncher` has runs forked from one process that has imported everything (`server.py`); `CommandLauncher`
starts a command. When and where a run is started is `local.py`'s to say.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.environment import child_environment
from experiments.records.processes import Owner
from sweeps.slots import Slot

TRAIN = (sys.executable, "-m", "ecdit_cli", "train")
ENTRY = "ecdit_cli.app:run"
PRELOADED = (
    "experiments.training.loop",
    "experiments.evaluation.preview",
    "experiments.evaluation.cadence",
    "torch._dynamo",  # seconds, which the first optimizer would pay
    "rich.table",
)
POLL_SECONDS = 0.5


class Worker(Protocol):
    """The process of one run."""

    @property
    def pid(self) -> int:
        """Its process id."""

    async def wait(self) -> int | None:
        """Its exit code, the negative signal where one ended it; None where that cannot be known."""

    def signal(self, number: signal.Signals) -> None:
        """Reach it, unless it has ended a moment ago."""

    def kill(self) -> None:
        """End it and what it started, at once."""


class Launcher(Protocol):
    """What starts the processes of runs."""

    async def start(self, arguments: Sequence[str], slot: Slot, log: Path, world: int) -> Worker | None:
        """`ecdit train ARGUMENTS` over `world` processes, in `slot`; None where it is not known whether it started."""

    async def close(self) -> None:
        """Nothing will be started any more; what runs goes on."""


@dataclass(eq=False)
class CommandWorker:
    """A process that we started ourselves."""

    process: Process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def wait(self) -> int | None:
        """Its exit code."""
        return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Reach the process."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End its session."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


@dataclass(eq=False)
class FoundWorker:
    """A process of this machine that somebody else started, or whose parent is gone."""

    owner: Owner

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.owner.pid

    async def wait(self) -> int | None:
        """Look now and then; how it ended is not known."""
        while not self.owner.is_dead():
            await asyncio.sleep(POLL_SECONDS)
        return None

    def signal(self, number: signal.Signals) -> None:
        """Reach the process."""
        if not self.owner.is_dead():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End its session if it leads one, else the process alone."""
        if not self.owner.is_dead():
            with suppress(ProcessLookupError):
                (os.killpg if os.getsid(self.pid) == self.pid else os.kill)(self.pid, signal.SIGKILL)


class CommandLauncher:
    """Starts `command ARGUMENTS`; for several processes torchrun, which starts that many `ecdit train`."""

    def __init__(self, command: Sequence[str] = TRAIN) -> None:
        """`command` is what stands before the arguments."""
        self._command = tuple(command)

    async def start(self, arguments: Sequence[str], slot: Slot, log: Path, world: int) -> Worker | None:
        """Start it."""
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(torchrun(world) if world > 1 else self._command),
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment(slot.environment()),
                start_new_session=True,
                preexec_fn=slot.pin,
            )
        return CommandWorker(process)

    async def close(self) -> None:
        """Nothing to close."""


def torchrun(world: int) -> tuple[str, ...]:
    """`ecdit train` over `world` processes of this machine, on a free port."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world))
    return (sys.executable, *launch, *TRAIN[1:])


class PreloadedLauncher:
    """Has runs forked from one preloaded process; a new one is started when it is gone.

    Runs of several processes are started by torchrun, and so is every run by its command where forking is not safe.
    """

    def __init__(self, log: Path, preload: Sequence[str] = PRELOADED) -> None:
        """What the server says goes to `log`. Nothing starts before the first run."""
        self._log, self._preload = log, tuple(preload)
        self._command = CommandLauncher()
        self._server: _ServerClient | None = None
        self._starting = asyncio.Lock()
        self._may_fork = sys.platform == "linux"

    async def start(self, arguments: Sequence[str], slot: Slot, log: Path, world: int) -> Worker | None:
        """Have it forked."""
        server = await self._ready_server() if world == 1 and self._may_fork else None
        if server is None:
            return await self._command.start(arguments, slot, log, world)
        request = {
            "arguments": ["train", *arguments],
            "environment": slot.environment(),
            "num_threads": slot.num_threads,
            "cores": list(slot.cores),
            "log": str(log),
        }
        return await server.start(request)

    async def close(self) -> None:
        """Let the server go; its children go on."""
        if self._server is not None:
            await self._server.hang_up()

    async def _ready_server(self) -> _ServerClient | None:
        """The one that lives, or a new one; None where none can be used here."""
        async with self._starting:
            if self._server is None or self._server.is_gone:
                self._server = await _ServerClient.begin(self._log, self._preload)
                self._may_fork = await self._server.is_safe()
                if not self._may_fork:
                    await self._server.hang_up()
            return self._server if self._may_fork else None


class _ServerClient:
    """The sweep's side of one server process."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._loop = asyncio.get_running_loop()
        self._safe: asyncio.Future[bool] = self._loop.create_future()
        self._started: dict[int, asyncio.Future[int | None]] = {}
        self._ended: dict[int, asyncio.Future[int | None]] = {}
        self._listening = asyncio.create_task(self._listen())
        self.is_gone = False

    @classmethod
    async def begin(cls, log: Path, preload: Sequence[str]) -> _ServerClient:
        """Start the process. It counts with one thread, so that it may fork."""
        ours, theirs = socket.socketpair()
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with theirs, log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sweeps.server", str(theirs.fileno()), ENTRY, ",".join(preload)),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment({**single, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return cls(process, *await asyncio.open_connection(sock=ours))

    async def is_safe(self) -> bool:
        """Once it has imported everything: whether it may fork. False when it could not start."""
        return await self._safe

    async def start(self, request: dict[str, Any]) -> Worker | None:
        """The child that works off `request`; None when the server ended before it answered."""
        number = len(self._ended)
        self._started[number], self._ended[number] = self._loop.create_future(), self._loop.create_future()
        if self.is_gone:
            return None
        self._writer.write(json.dumps({"id": number, **request}).encode() + b"\n")
        pid = await self._started[number]
        return None if pid is None else _ForkedWorker(Owner.of(pid), self._ended[number])

    async def hang_up(self) -> None:
        """The server then ends by itself; one that is still importing has nothing to lose."""
        self._writer.close()
        if not self._safe.done():
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _listen(self) -> None:
        while line := await self._next_line():
            message = json.loads(line)
            if "safe" in message:
                self._safe.set_result(message["safe"])
            elif "pid" in message:
                self._started[message["id"]].set_result(message["pid"])
            else:
                self._ended[message["id"]].set_result(message["exit"])
        self.is_gone = True
        self._writer.close()
        if not self._safe.done():
            self._safe.set_result(False)
        for future in (*self._started.values(), *self._ended.values()):
            if not future.done():
                future.set_result(None)

    async def _next_line(self) -> bytes:
        try:
            return await self._reader.readline()
        except ConnectionError:
            return b""


class _ForkedWorker(FoundWorker):
    """A child of the server, which reports its exit code as long as it lives."""

    def __init__(self, owner: Owner, ended: asyncio.Future[int | None]) -> None:
        super().__init__(owner)
        self._ended = ended

    async def wait(self) -> int | None:
        """Its exit code; without the server that it is gone."""
        code = await asyncio.shield(self._ended)
        return await super().wait() if code is None else code
