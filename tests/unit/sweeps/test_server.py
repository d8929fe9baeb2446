"""Runs forked from a preloaded process: what they get, and that nothing that happens to one or to it matters."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from sweeps import workers
from sweeps.device_slots import Slot, visible_cores
from sweeps.workers import FoundWorker, PreloadedLauncher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks after imports")

RUN = """
import os, signal, sys, time

PRELOADED_BY = os.getpid()

def run(arguments):
    verb, command, *rest = arguments
    print(verb, command, PRELOADED_BY != os.getpid(), os.environ["OMP_NUM_THREADS"], flush=True)
    print(sorted(os.sched_getaffinity(0)), os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGTERM), flush=True)
    if command == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if command == "wait":
        time.sleep(1)
    return int(rest[0]) if rest else 0
"""


def test_what_a_sweep_imports_starts_no_thread() -> None:
    """A process with more than one thread cannot fork safely, so that every run would import torch for itself."""
    imports = "".join(f"import {module}\n" for module in workers.PRELOADED)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    program = f"import os, sys\n{imports}print(len(os.listdir('/proc/self/task')), 'pyarrow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | one_thread, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False"]


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(RUN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getcwd()}")
    monkeypatch.setattr(workers, "ENTRY", "stand_in:run")
    return PreloadedLauncher(tmp_path / "server.log", preload=["json"])


def started(launcher, log, *commands, slot=None, then=None):
    """Exit codes of runs that are started at once."""

    async def go():
        runs = [await launcher.start(command, slot or Slot(1), log, world=1) for command in commands]
        if then is not None:
            then(launcher, runs)
        codes = await asyncio.gather(*(run.wait() for run in runs))
        await launcher.close()
        return codes

    return asyncio.run(go())


def test_a_run_gets_its_slot_its_log_and_a_session_of_its_own(launcher, tmp_path):
    log, core = tmp_path / "log.txt", visible_cores()[-1]
    assert started(launcher, log, ["now", "3"], slot=Slot(2, (core,))) == [3]
    first, second = log.read_text().splitlines()
    assert first == "train now True 2"
    assert second == f"[{core}] True {signal.SIG_DFL}"


def test_a_run_that_crashes_takes_no_other_with_it(launcher, tmp_path):
    codes = started(launcher, tmp_path / "log.txt", ["die"], ["wait", "5"], ["now"])
    assert codes == [-signal.SIGSEGV, 5, 0]


def test_without_the_server_a_run_goes_on_and_its_end_is_noticed(launcher, tmp_path):
    def kill_server(launcher, runs):
        os.kill(launcher._server._process.pid, signal.SIGKILL)

    assert started(launcher, tmp_path / "log.txt", ["wait", "5"], then=kill_server) == [None]


def test_a_new_server_is_started_when_the_old_one_is_gone(launcher, tmp_path):
    async def go():
        first = await launcher.start(["now"], Slot(1), tmp_path / "log.txt", world=1)
        await first.wait()
        server = launcher._server._process
        server.kill()
        await server.wait()
        while not launcher._server.is_gone:
            await asyncio.sleep(0.01)
        second = await launcher.start(["now", "4"], Slot(1), tmp_path / "log.txt", world=1)
        assert isinstance(second, FoundWorker)
        code = await second.wait()
        await launcher.close()
        return code

    assert asyncio.run(go()) == 4


def test_where_the_server_cannot_start_runs_are_started_by_their_command(launcher, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ENTRY", "no_such_module:run")
    monkeypatch.setattr(launcher, "_command", workers.CommandLauncher([sys.executable, "-c", "print('by command')"]))
    assert started(launcher, tmp_path / "log.txt", ["now"]) == [0]
    assert (tmp_path / "log.txt").read_text() == "by command\n"
    assert "no_such_module" in (tmp_path / "server.log").read_text()
