"""Starts the process of a run, and provides what can be done with one: wait for it, signal it, end it.

`PreloadedLauncher` has runs forked from one process that has imported everything (`server.py`); `CommandLauncher`
starts a command. `local.py` decides when and where a run is started.
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
from experiments.records.process_identity import Owner
from sweeps.device_slots import Slot

TRAIN = (sys.executable, "-m", "ecdit_cli", "train")
ENTRY = "ecdit_cli.app:run"
PRELOADED = (
    "experiments.training.loop",
    "experiments.evaluation.sampling.preview",
    "experiments.evaluation.cadence",
    "rich.table",
)
POLL_SECONDS = 0.5


class Worker(Protocol):
    """The process of one run, as the executor sees it."""

    @property
    def pid(self) -> int:
        """Returns the process id."""

    async def wait(self) -> int | None:
        """Waits for the end and returns the exit code, -N after signal N, or None where it cannot be known."""

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, unless it has ended already."""

    def kill(self) -> None:
        """Ends the process and everything that it started, at once."""


class Launcher(Protocol):
    """Starts the processes of runs."""

    async def start(self, arguments: Sequence[str], slot: Slot, log: Path, world: int) -> Worker | None:
        """Starts `ecdit train ARGUMENTS` as `world` processes in `slot`. Returns None where it may not have started."""

    async def close(self) -> None:
        """Releases the launcher when nothing will be started any more. Running processes go on."""


@dataclass(eq=False)
class CommandWorker:
    """A process that this sweep started itself."""

    process: Process

    @property
    def pid(self) -> int:
        """Returns the process id."""
        return self.process.pid

    async def wait(self) -> int | None:
        """Waits for the end and returns the exit code."""
        return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process itself."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the whole session of the process."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


@dataclass(eq=False)
class FoundWorker:
    """A process of this machine that somebody else started, or whose parent is gone."""

    owner: Owner

    @property
    def pid(self) -> int:
        """Returns the process id."""
        return self.owner.pid

    async def wait(self) -> int | None:
        """Polls until the process is gone, and returns None: only a parent learns the exit code."""
        while not self.owner.is_dead():
            await asyncio.sleep(POLL_SECONDS)
        return None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process itself."""
        if not self.owner.is_dead():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the session of the process if it leads one, else the process alone."""
        if not self.owner.is_dead():
            with suppress(ProcessLookupError):
                (os.killpg if os.getsid(self.pid) == self.pid else os.kill)(self.pid, signal.SIGKILL)


class CommandLauncher:
    """Starts `command ARGUMENTS`; for several processes torchrun, which starts that many `ecdit train`."""

    def __init__(self, command: Sequence[str] = TRAIN) -> None:
        """Sets the `command` that stands before the arguments of every run."""
        self._command = tuple(command)

    async def start(self, arguments: Sequence[str], slot: Slot, log: Path, world: int) -> Worker | None:
        """Starts the command, pinned to `slot`, with its output appended to `log`."""
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(torchrun(world) if world > 1 else self._command),
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment(slot.environment()),
                start_new_session=True,  # a Ctrl-C at the terminal must reach the sweep only
                preexec_fn=slot.pin,
            )
        return CommandWorker(process)

    async def close(self) -> None:
        """Does nothing: there is nothing to close."""


def torchrun(world: int) -> tuple[str, ...]:
    """Returns the command that starts `ecdit train` as `world` processes of this machine, on a free port."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world))
    return (sys.executable, *launch, *TRAIN[1:])


class PreloadedLauncher:
    """Has runs forked from one preloaded server process, and starts a new server when that one is gone.

    Runs of several processes are started by torchrun; where forking is not safe, every run is started by its command.
    """

    def __init__(self, log: Path, preload: Sequence[str] = PRELOADED) -> None:
        """Sets the file `log` for the output of the server, which is started with the first run."""
        self._log, self._preload = log, tuple(preload)
        self._command = CommandLauncher()
        self._server: _ServerClient | None = None
        self._starting = asyncio.Lock()
        self._may_fork = sys.platform == "linux"

    async def start(self, arguments: Sequence[str], slot: Slot, log: Path, world: int) -> Worker | None:
        """Asks the server to fork the run, or starts the command where the server cannot be used."""
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
        """Disconnects from the server, which then ends. Its children go on."""
        if self._server is not None:
            await self._server.hang_up()

    async def _ready_server(self) -> _ServerClient | None:
        """Returns the server that lives, or starts one; None where no server can be used here."""
        async with self._starting:
            if self._server is None or self._server.is_gone:
                self._server = await _ServerClient.begin(self._log, self._preload)
                self._may_fork = await self._server.is_safe()
                if not self._may_fork:
                    await self._server.hang_up()
            return self._server if self._may_fork else None


class _ServerClient:
    """The sweep's end of the connection to one server process."""

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
        """Starts the server, with one thread in every BLAS and OpenMP pool, so that it may fork."""
        ours, theirs = socket.socketpair()
        # A fork copies only the calling thread, and locks that other threads hold would stay locked in the child.
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
        """Waits until the server has imported everything; returns whether it may fork, False if it did not start."""
        return await self._safe

    async def start(self, request: dict[str, Any]) -> Worker | None:
        """Asks for a child that executes `request`. Returns None when the server ended before it answered."""
        number = len(self._ended)
        self._started[number], self._ended[number] = self._loop.create_future(), self._loop.create_future()
        if self.is_gone:
            return None
        self._writer.write(json.dumps({"id": number, **request}).encode() + b"\n")
        pid = await self._started[number]
        return None if pid is None else _ForkedWorker(Owner.of(pid), self._ended[number])

    async def hang_up(self) -> None:
        """Closes the connection, which ends the server. One that is still importing has no children, and is killed."""
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
    """A child of the server, which reports the exit code of the child as long as the server lives."""

    def __init__(self, owner: Owner, ended: asyncio.Future[int | None]) -> None:
        super().__init__(owner)
        self._ended = ended

    async def wait(self) -> int | None:
        """Returns the exit code; without the server it waits until the process is gone, and returns None."""
        code = await asyncio.shield(self._ended)
        return await super().wait() if code is None else code
