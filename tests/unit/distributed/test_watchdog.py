"""Who is silent ends the others, and nobody else does. Each watchdog is a process, which may be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed import TCPStore

RANK = """
import os, signal, sys, time
from torch.distributed import PrefixStore, TCPStore
from experiments.distributed.watchdog import Watchdog
rank, world, port, what = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
store = TCPStore("127.0.0.1", port, is_master=False)
names = [f"rank {other} on n{other}" for other in range(world)]
say = lambda reason: print(reason, flush=True)
dog = Watchdog(PrefixStore("watchdog", store), rank, names, say, look_seconds=0.05)
with dog, dog.ending(lambda reason: say("end")):
    store.set(f"ready/{rank}", "")
    store.wait([f"ready/{other}" for other in range(world)])
    print("begun", flush=True)
    if what == "fail":
        raise SystemExit(3)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "busy":
        while time.process_time() < 5:
            pass
    if what == "wait":
        time.sleep(60)
print("ended by itself", flush=True)
"""
LIMIT_SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.multi]


@pytest.fixture
def ranks():
    """`ranks("wait", "stop")`: a process for each, all of which are ended in the end."""
    store, started = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []

    def start(*deeds):
        for rank, deed in enumerate(deeds):
            command = [sys.executable, "-c", RANK, str(rank), str(len(deeds)), str(store.port), deed]
            # unbuffered: the first line is read alone, and what follows is left for `communicate`
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0))
        assert [process.stdout.readline() for process in started] == [b"begun\n"] * len(deeds)
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process):
    """Its exit code and what it said."""
    said, _ = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, said.decode().splitlines()


def test_ranks_that_end_by_themselves_at_different_times_disturb_nobody(ranks):
    for process in ranks("busy", "nothing", "busy"):
        assert end(process) == (0, ["ended by itself"])


@pytest.mark.parametrize(("deeds", "lost"), [(("wait", "wait", "stop"), 2), (("stop", "wait", "wait"), 0)])
def test_a_rank_that_is_stopped_is_named_and_ends_all_others(ranks, deeds, lost):
    processes = ranks(*deeds)
    for rank, process in enumerate(processes):
        if rank != lost:
            code, said = end(process)
            assert code == 1
            assert said[0].startswith(
                f"Another process of this run has ended or hangs: rank {lost} on n{lost} gave no sign for 36 s."
            )
            assert said[1:] == ["end"]
    assert processes[lost].poll() is None


@pytest.mark.parametrize(("deeds", "lost"), [(("wait", "fail", "wait"), 1), (("fail", "wait", "wait"), 0)])
def test_a_rank_that_fails_ends_the_others_sooner(ranks, deeds, lost):
    for rank, process in enumerate(ranks(*deeds)):
        code, said = end(process)
        assert code == (3 if rank == lost else 1)
        assert rank == lost or f"rank {lost} on n{lost} has failed" in said[0]


def test_ranks_that_are_stopped_together_go_on_together(ranks):
    processes = ranks("busy", "busy")
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4)
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
    for process in processes:
        assert end(process) == (0, ["ended by itself"])
