"""Processes forked from one that has imported torch and DeepSpeed already, by the server that sweeps use.

A run of a tiny model takes one second of a processor, and the imports before it take four. Tests of what a run does
therefore start it here, and so do tests of several ranks that have a program of their own; tests of a launcher, of the
start itself or of the memory of a process start the command.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from sweeps.workers import PRELOADED

ENTRY = "tests.preloaded:run"
ECDIT = "ecdit_cli.app:main"
IMPORTED = (
    *PRELOADED, "ecdit_cli.app", "ecdit_cli._progress", "experiments.config.designs", "experiments.records.origin",
    "experiments.records.outputs", "rich.progress",
)  # fmt: skip
"""What `ecdit train` imports: beside torch and DeepSpeed the command line itself, or each child would import it."""
MEASURING = (*IMPORTED, "tests.reference_images")
"""What runs import that measure samples while they train, and what these are compared with."""
NEW_NETWORK = 0x40000000
"""`CLONE_NEWNET` of Linux; Python names it, and has `os.setns`, only since 3.12."""
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run(arguments: Sequence[str]) -> int:
    """Calls a function in a forked child, as the program `ecdit` with words after it.

    The server has sent all output to the file of errors; stdout gets a file of its own.
    """
    function, output, network, folder, variables, *words = arguments
    file = os.open(output, os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.close(file)
    os.environ.clear()
    os.environ.update(json.loads(variables))
    if network:
        _enter(network)
    if folder:
        os.chdir(folder)
    sys.argv = ["ecdit", *words]
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)()
    return 0


def _enter(network: str) -> None:
    """Moves this process into a network namespace that `ip netns add` has made."""
    with Path("/run/netns", network).open() as file:
        library = ctypes.CDLL(None, use_errno=True)
        if library.setns(file.fileno(), NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {network}")


class Server:
    """A process that forks others, and what it has said of them: the process id and the exit code by number.

    It has imported the modules of `preload` by their names.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ecdit-preloaded-"))
        self.pids: dict[int, int] = {}
        self.exits: dict[int, int] = {}
        self._num_runs, self._received, self._is_safe = 0, b"", False
        self._channel, theirs = socket.socketpair()
        with theirs, (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sweeps.server", str(theirs.fileno()), ENTRY, ",".join(preload)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[1], env={**os.environ, **SINGLE_THREAD, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        atexit.register(self._close)
        while not self._is_safe:
            self.listen(None)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _close(self) -> None:
        """Hangs up, which ends the server."""
        self._channel.close()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        function: str = ECDIT,
        network: str = "",
        folder: Path | str = "",
    ) -> ForkedRun:
        """Forks `ecdit ARGUMENTS`, or another `function`, named as "module:name", which finds them in `sys.argv`.

        With `network` it runs in the network namespace of that name, with `folder` in that working folder.
        """
        number = self._num_runs
        self._num_runs += 1
        forked = ForkedRun(self, number)
        request = {"environment": {}, "num_threads": 1, "cores": [], "log": str(forked.errors)}
        words = [function, str(forked.output), network, str(folder), json.dumps(dict(environment)), *arguments]
        self._channel.settimeout(None)
        self._channel.sendall(json.dumps({"id": number, "arguments": words, **request}).encode() + b"\n")
        while number not in self.pids:
            self.listen(None)
        return forked

    def listen(self, timeout: float | None) -> None:
        """Takes in what the server says within `timeout` seconds, or whenever it says something."""
        self._channel.settimeout(timeout)
        with suppress(TimeoutError, BlockingIOError):
            received = self._channel.recv(1 << 16)
            assert received, f"the server has ended: {(self.folder / 'server.log').read_text()}"
            *lines, self._received = (self._received + received).split(b"\n")
            for message in map(json.loads, lines):
                if "safe" in message:
                    assert message["safe"], "this machine cannot fork after importing torch"
                    self._is_safe = True
                elif "pid" in message:
                    self.pids[message["id"]] = message["pid"]
                else:
                    self.exits[message["id"]] = message["exit"]


class ForkedRun:
    """A run in a process and session of its own, with what tests use of `subprocess.Popen`."""

    def __init__(self, server: Server, number: int) -> None:
        self._server, self._number = server, number
        self.output, self.errors = (server.folder / f"{number}.{name}" for name in ("out", "err"))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._server.pids[self._number]

    @property
    def returncode(self) -> int | None:
        """The exit code once `poll` or `communicate` has learnt it."""
        return self._server.exits.get(self._number)

    def poll(self) -> int | None:
        """Returns the exit code, or None while the run goes on."""
        if self.returncode is None:
            self._server.listen(0)
        return self.returncode

    def communicate(self, timeout: float = 60.0) -> tuple[str, str]:
        """Waits for the end; returns what the run wrote to stdout and to stderr."""
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if (left := deadline - time.monotonic()) <= 0:
                raise subprocess.TimeoutExpired("ecdit", timeout)
            self._server.listen(left)
        said = (path.read_text() if path.exists() else "" for path in (self.output, self.errors))
        return next(said), next(said)

    def send_signal(self, number: int) -> None:
        """Signals the process, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process at once."""
        self.send_signal(signal.SIGKILL)


@cache
def server(preload: tuple[str, ...] = IMPORTED) -> Server:
    """Returns the server of this test process that has imported `preload`."""
    started = Server(preload)
    STARTED.append(started)
    return started


STARTED: list[Server] = []


def processor_seconds_of_servers() -> float:
    """Returns what the servers and their ended children have used; 0 where no test has started one."""
    return sum(sum(psutil.Process(one.pid).cpu_times()[:4]) for one in STARTED)
