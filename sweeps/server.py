"""The preloaded server: a process that imports what a run needs once, and forks a child for each run.

    python -m sweeps.server SOCKET ENTRY MODULE,MODULE,...

The two sides exchange one JSON object per line over the socket. `{"id", "arguments", "environment", "num_threads",
"cores", "log"}` asks for a run, and is answered by `{"id", "pid"}` and, when the child has ended, by `{"id", "exit"}`.
The modules are given by name, so that neither this file nor the sweep (`workers.py`), which starts this process and
talks to it, imports torch.

Forking is safe as long as this process has one thread and has not initialised an accelerator. It is therefore started
with one thread (OMP_NUM_THREADS, BLAS) and asks for devices through NVML, which does not initialise CUDA. Before the
first run a first child tests whether that held; where it did not, the sweep is told not to use this server. Each child
leads a session of its own with its own log, and outlives this process. On systems other than Linux forking after such
imports is unsafe, and the sweep does not start this process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SAFE, UNSAFE = 0, 1


@dataclass
class Server:
    """The children that have not ended (request id by process id), and this end of the socket to the sweep."""

    channel: socket.socket
    children: dict[int, int] = field(default_factory=dict)
    received: bytes = b""

    def say(self, **message: Any) -> None:
        """Sends one message to the sweep, which may be gone already."""
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def serve(self) -> dict[str, Any] | None:
        """Forks a child for every request until the sweep hangs up.

        Returns None in the server when the sweep has hung up, and in each child the request that it is to execute.
        """
        # The signal of an ended child writes a byte into a socket, so that one `select` waits for the sweep and for
        # children. The handler itself does nothing, but without one Python would not write the byte.
        woken, wakes = socket.socketpair()
        wakes.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        with woken, wakes, selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if woken in ready:
                    woken.recv(4096)
                    self._reap()
                if self.channel in ready:
                    requests = self._requests()
                    if requests is None:
                        return None
                    for request in requests:
                        if self._fork(request) == 0:
                            return request

    def _requests(self) -> list[dict[str, Any]] | None:
        try:
            received = self.channel.recv(1 << 20)
        except ConnectionError:
            return None
        if not received:
            return None
        *lines, self.received = (self.received + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def _fork(self, request: dict[str, Any]) -> int:
        pid = os.fork()
        if pid:
            self.children[pid] = request["id"]
            self.say(id=request["id"], pid=pid)
        return pid

    def _reap(self) -> None:
        for pid in list(self.children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.say(id=self.children.pop(pid), exit=os.waitstatus_to_exitcode(status))


def is_safe_to_fork() -> bool:
    """Returns whether a child could work.

    This process must have one thread, and no accelerator that was initialised before the fork: a first child tests
    that.
    """
    try:
        if len(os.listdir("/proc/self/task")) != 1:
            return False
    except OSError:
        return False
    pid = os.fork()
    if pid == 0:
        torch = sys.modules.get("torch")
        os._exit(UNSAFE if torch is not None and torch.cuda._is_in_bad_fork() else SAFE)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == SAFE


def become_run(request: dict[str, Any]) -> None:
    """Gives a fresh child the session, signals, log and slot that a separate process would have."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.setsid()  # the run has a session of its own and does not end with the server or its terminal
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    os.environ.update(request["environment"])
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(request["num_threads"])
    sys.argv = ["ecdit", *request["arguments"]]


def main() -> int:
    """Serves until the sweep hangs up. In a child it executes the run, and returns its exit code."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    run: Callable[[list[str]], int] = pkgutil.resolve_name(sys.argv[2])
    for name in sys.argv[3].split(","):
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = Server(channel)
    server.say(safe=is_safe_to_fork())
    gc.collect()
    gc.freeze()  # the imported objects stay: a child's collector need not scan them, nor copy their pages
    request = server.serve()
    channel.close()
    if request is None:
        return 0
    become_run(request)
    return run(request["arguments"])


if __name__ == "__main__":
    sys.exit(main())
