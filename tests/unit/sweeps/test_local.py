"""How many runs go at once and what each of them gets."""

from __future__ import annotations

import pytest

from sweeps.local import Slots, choose_slots, visible_accelerators, visible_cores


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_without_an_accelerator_every_core_is_a_slot(no_accelerator):
    assert choose_slots(num_runs=1000) == Slots(count=visible_cores(), num_threads=1)


def test_fewer_runs_than_cores_share_all_cores(no_accelerator):
    assert choose_slots(num_runs=1) == Slots(count=1, num_threads=visible_cores())


def test_more_slots_than_cores_still_have_a_thread_each(no_accelerator):
    assert choose_slots(num_runs=1000, asked=100 * visible_cores()).num_threads == 1


def test_accelerators_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_accelerators() == ("2", "5")
    assert choose_slots(num_runs=1000).count == 2
    slots = choose_slots(num_runs=1000, asked=3)
    assert [slots.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["2", "5", "2"]


def test_accelerators_are_found_without_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_accelerators() == ("0", "1")
