"""How many runs go at once and what each of them gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from experiments.errors import ConfigError
from sweeps import device_slots as slots
from sweeps.device_slots import Slot, choose_slots, visible_accelerators, visible_cores


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine without an accelerator."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(slots, "visible_cores", lambda: (0, 1, 2, 3, 8, 9, 10, 11))


@pytest.fixture
def four_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6,7")
    monkeypatch.setattr(slots, "visible_cores", lambda: tuple(range(16)))


def test_without_an_accelerator_every_core_is_a_slot(eight_cores):
    assert choose_slots(num_runs=1000) == tuple(Slot(1, (core,)) for core in (0, 1, 2, 3, 8, 9, 10, 11))


def test_fewer_runs_than_cores_share_all_cores(eight_cores):
    assert choose_slots(num_runs=2) == (Slot(4, (0, 1, 2, 3)), Slot(4, (8, 9, 10, 11)))


def test_cores_are_dealt_out_in_groups(eight_cores):
    assert [slot.cores for slot in choose_slots(1000, cores_per_run=3)] == [(0, 1, 2), (3, 8, 9)]
    assert choose_slots(1000, asked=1, cores_per_run=2) == (Slot(2, (0, 1)),)


def test_more_slots_than_cores_have_a_thread_each_and_are_not_pinned(eight_cores):
    assert choose_slots(num_runs=1000, asked=9) == (Slot(1),) * 9


def test_the_processes_of_one_run_share_its_cores(eight_cores):
    assert choose_slots(num_runs=1000, processes_per_run=2)[0] == Slot(1, (0, 1))
    assert choose_slots(num_runs=1000, cores_per_run=4, processes_per_run=2)[0] == Slot(2, (0, 1, 2, 3))


def test_every_accelerator_is_a_slot(four_devices):
    assert visible_accelerators() == ("2", "5", "6", "7")
    assert choose_slots(num_runs=1000) == tuple(Slot(4, (), (device,)) for device in ("2", "5", "6", "7"))


def test_several_runs_on_an_accelerator_fill_all_of_them_first(four_devices):
    dealt = [slot.accelerators for slot in choose_slots(num_runs=6, runs_per_accelerator=2)]
    assert dealt == [("2",), ("5",), ("6",), ("7",), ("2",), ("5",)]
    assert choose_slots(1000, runs_per_accelerator=2)[7].environment() == {
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "7",
    }


def test_a_run_of_several_processes_gets_as_many_accelerators(four_devices):
    assert [slot.accelerators for slot in choose_slots(1000, processes_per_run=2)] == [("2", "5"), ("6", "7")]
    with pytest.raises(ConfigError, match="world=8 is more than the 4 accelerators"):
        choose_slots(1000, processes_per_run=8)


def test_more_cores_than_there_are_is_said(eight_cores):
    with pytest.raises(ConfigError, match="--cores-per-run 9 is more than the 8 cores"):
        choose_slots(1000, cores_per_run=9)


def test_accelerators_are_found_without_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_accelerators() == ("0", "1")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_a_process_in_a_slot_stays_on_its_cores():
    core = visible_cores()[-1]
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=Slot(1, (core,)).pin, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"[{core}]"
