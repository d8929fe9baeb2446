"""Who is silent ends the others, and nobody else does. Each watchdog is a process, which may be ended."""

from __future__ import annotations

import os
import signal
import time

import pytest
from torch.distributed import TCPStore

from tests.preloaded import server
from tests.training_runs import environment

RANK = "tests.unit.distributed.watchdog_rank:main"
LIMIT_SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.multi]


@pytest.fixture
def ranks():
    """`ranks("wait", "stop")`: a process for each, all of which are ended in the end."""
    store, started = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []

    def start(*deeds):
        for rank, deed in enumerate(deeds):
            words = [str(rank), str(len(deeds)), str(store.port), deed]
            started.append(server().start(words, environment(), RANK))
        deadline = time.monotonic() + LIMIT_SECONDS
        while [said(process)[:1] for process in started] != [["begun"]] * len(deeds):
            assert time.monotonic() < deadline, [said(process) for process in started]
            time.sleep(0.01)
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process):
    """Its lines until now."""
    return process.output.read_text().splitlines() if process.output.exists() else []


def end(process):
    """Its exit code and what it said after it had begun."""
    process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, said(process)[1:]


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
