"""Two sweeps of one folder: what one has the other leaves alone, until it is finished or its holder is gone."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from experiments.records.lock_file import take
from experiments.records.process_identity import Owner
from experiments.records.record_types import Status
from experiments.records.writer import write_status
from sweeps.sharing import SharedRuns


@pytest.fixture
def plan(seeds):
    return seeds(0, 1)


def elsewhere():
    return dataclasses.replace(Owner.of(), host="elsewhere", boot="other")


def end(folder, run, state, reason=None):
    write_status(folder.run_dir(run), Status(state=state, images_total=64, heartbeat=time.time(), reason=reason))


def test_runs_are_taken_once_each_and_in_order(plan, queue):
    one, other = queue(plan), queue(plan)
    assert one.take() == plan.runs[0]
    assert other.take() == plan.runs[1]
    assert (one.take(), other.take()) == (None, None)
    assert [event.text for event in one.take_events()] == ["another sweep is training it"]


def test_what_another_sweep_finished_is_finished(folder, plan, queue, clock):
    one, other = queue(plan), queue(plan)
    run = one.take()
    other.give_back(other.take(), None)
    assert other.take() is None
    end(folder, run, "done")
    one.give_back(run, None)
    clock[0] += 2
    assert other.take() is None
    assert other.is_empty
    assert run.name in other.changed()


def test_what_failed_elsewhere_meanwhile_is_not_tried_again(folder, plan, queue):
    one, other = queue(plan), queue(plan)
    run = one.take()
    end(folder, run, "failed", "the loss is not finite")
    one.give_back(run, None)
    assert other.take() == plan.runs[1]
    assert other.is_empty
    again = queue(plan)
    assert again.take() == run


def test_what_another_sweep_had_to_give_up_is_taken(plan, queue, clock):
    one, other = queue(plan), queue(plan)
    assert other.take() is not None
    run = one.take()
    assert other.take() is None
    one.close()
    clock[0] += 2
    assert other.take() == run


def test_the_lock_of_a_sweep_that_is_gone_is_taken_over_at_once(folder, plan):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    take(folder.locks(plan.runs[0]), owner=Owner.of(process.pid))
    assert not SharedRuns(folder).take(plan.runs[0])
    process.communicate(b"\n")
    assert SharedRuns(folder).take(plan.runs[0])


def test_a_sweep_elsewhere_is_believed_while_it_gives_signs_and_some_time_longer(folder, plan, clock):
    theirs = take(folder.locks(plan.runs[0]), owner=elsewhere())
    shared = SharedRuns(folder)
    for _ in range(4):
        clock[0] += 500
        theirs.renew()
        assert not shared.take(plan.runs[0])
    clock[0] += 599
    assert not shared.take(plan.runs[0])
    clock[0] += 2
    assert shared.take(plan.runs[0])
    assert not theirs.renew()


def test_what_is_old_is_taken_over_after_a_short_look(folder, plan, clock):
    """A clock that was moved makes everything look old, but not for longer than until the next sign."""
    take(folder.locks(plan.runs[0]), owner=elsewhere())
    lock = next(folder.locks(plan.runs[0]).glob("*.held"))
    os.utime(lock, (0, time.time() - 86400))
    shared = SharedRuns(folder)
    assert not shared.take(plan.runs[0])
    clock[0] += 61
    assert shared.take(plan.runs[0])


def test_a_run_that_still_goes_elsewhere_is_left_to_it_when_its_sweep_is_gone(folder, plan, clock):
    run = plan.runs[0]
    take(folder.run_dir(run).locks, owner=elsewhere())
    shared = SharedRuns(folder)
    for _ in range(4):
        clock[0] += 500
        end(folder, run, "running")
        assert not shared.take(run)
    clock[0] += 601
    assert shared.take(run)


def test_locks_are_renewed_now_and_then(folder, plan, clock):
    shared = SharedRuns(folder)
    shared.take(plan.runs[0])
    lock = next(folder.locks(plan.runs[0]).glob("*.held"))
    os.utime(lock, (0, 0))
    shared.renew()
    assert lock.stat().st_mtime == 0
    clock[0] += 6
    shared.renew()
    assert lock.stat().st_mtime > 0


def test_a_lock_that_cannot_be_written_is_said_and_stops_no_other_run(folder, plan, queue):
    blocked = folder.locks(plan.runs[0])
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    runs = queue(plan)
    assert runs.take() == plan.runs[1]
    assert "cannot write" in runs.lock_errors[plan.runs[0].name]
    assert runs.is_empty
