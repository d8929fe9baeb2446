"""The clock of training stands still while the process is stopped, and goes on while it waits."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from experiments.training import pauses
from experiments.training.pauses import TrainingClock

STOPPED = """
import os, signal, subprocess, time
from experiments.training import pauses
pauses.TICK_SECONDS, pauses.GAP_SECONDS = 0.1, 0.5
said = []
with pauses.TrainingClock(said.append) as clock:
    before, began = clock.now(), time.perf_counter()
    subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    print(time.perf_counter() - began, clock.now() - before, len(said))
"""


@pytest.mark.parametrize("wait", ["", "time.sleep(0.3)\n    "], ids=["main thread first", "clock's thread first"])
def test_seconds_in_which_the_process_was_stopped_are_left_out_and_said(wait: str) -> None:
    script = STOPPED.replace("print(", f"{wait}print(")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    elapsed, counted, times_said = map(float, ended.stdout.split())
    assert elapsed - counted > 1.5
    assert counted >= 0
    assert times_said == 1


def test_waiting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(pauses, "GAP_SECONDS", 10.0)
    with TrainingClock(pytest.fail) as clock:
        before, began = clock.now(), time.perf_counter()
        time.sleep(0.2)
        assert clock.now() - before == pytest.approx(time.perf_counter() - began, abs=0.01)
