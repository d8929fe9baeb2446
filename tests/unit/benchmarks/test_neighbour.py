"""The process that `ecdit bench routing --neighbour` keeps busy."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from experiments.benchmarks.neighbour import busy_neighbour


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_neighbour_uses_a_core_while_it_is_wanted_and_ends_afterwards(is_wanted):
    before = set(psutil.Process().children())
    with busy_neighbour(is_wanted):
        new = set(psutil.Process().children()) - before
        assert len(new) == is_wanted
        assert wait_for(lambda: all(each.cpu_times().user > 0.05 for each in new))
    assert not any(each.is_running() for each in new)


def test_a_neighbour_ends_with_a_process_that_is_killed():
    program = (
        "import time; from experiments.benchmarks.neighbour import busy_neighbour\n"
        "with busy_neighbour(): time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    parent = psutil.Process(process.pid)
    assert wait_for(parent.children)
    neighbour = parent.children()[0]
    assert wait_for(lambda: neighbour.cpu_times().user > 0.05)  # its program has begun
    process.kill()
    process.wait()
    assert wait_for(lambda: not neighbour.is_running())
