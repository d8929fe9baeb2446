"""Locks: one holder at a time, whoever comes when; the dead are replaced, the living are not."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.errors import StorageError
from experiments.records import lock_file as ownership
from experiments.records.lock_file import LockFile, Silence, holder, silence_on_disk, take, take_if_dead
from experiments.records.process_identity import Owner


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "claims"


def process_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner.of(process.pid)
    process.communicate(b"\n")
    return owner


def elsewhere():
    return dataclasses.replace(Owner.of(), host="elsewhere", boot="other")


def hold(folder, owner):
    lock = take(folder, owner=owner)
    assert isinstance(lock, LockFile)
    return lock


def race(folder, barrier, wins):
    barrier.wait()
    lock = take_if_dead(folder)
    if isinstance(lock, LockFile):
        with wins.get_lock():
            wins.value += 1
        time.sleep(0.5)


@pytest.mark.parametrize("before", ["free", "dead", "given back"])
def test_of_many_processes_at_once_one_gets_the_claim(folder, before):
    if before == "dead":
        hold(folder, process_that_has_ended())
    elif before == "given back":
        hold(folder, None).release()
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(8), context.Value("i", 0)
    racers = [context.Process(target=race, args=(folder, barrier, wins)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert wins.value == 1


def test_a_holder_that_lives_is_named_and_keeps_it(folder):
    lock = hold(folder, None)
    found = take_if_dead(folder)
    assert found == holder(folder)
    assert str(found.owner) == f"process {os.getpid()} on {Owner.of().host}"
    assert lock.renew()


def test_what_was_given_back_is_free(folder):
    lock = hold(folder, None)
    lock.release()
    lock.release()
    assert holder(folder) is None
    assert not lock.renew()
    assert take(folder) is not None


def test_a_process_that_ended_is_replaced_at_once(folder):
    lost = hold(folder, process_that_has_ended())
    assert holder(folder).is_dead()
    assert isinstance(take_if_dead(folder), LockFile)
    assert not lost.renew()
    lost.release()
    assert holder(folder).owner == Owner.of()


@pytest.mark.parametrize("change", [{"began": "1"}, {"boot": "before"}], ids=["its id was used again", "restarted"])
def test_a_process_is_known_by_more_than_its_id(folder, change):
    hold(folder, dataclasses.replace(Owner.of(), **change))
    assert holder(folder).is_dead()


def test_another_machine_is_believed_until_it_was_silent_for_long(folder):
    hold(folder, elsewhere())
    assert holder(folder).is_dead() is None
    assert take_if_dead(folder) == holder(folder)
    path = next(folder.glob("*.held"))
    os.utime(path, (0, time.time() - 601))
    assert isinstance(take_if_dead(folder), LockFile)


def test_a_clock_set_back_or_forth_takes_no_lock_from_a_living_process(folder, monkeypatch):
    hold(folder, None)
    found = holder(folder)
    for shift in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda shift=shift: 1.8e9 + shift)
        os.utime(next(folder.glob("*.held")), (0, 1.8e9 - shift))
        assert take_if_dead(folder) == holder(folder)
    assert found.owner == Owner.of()


def test_an_earlier_start_of_the_same_slurm_job_is_dead_wherever_it_ran(folder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    hold(folder, elsewhere())
    assert not isinstance(take_if_dead(folder), LockFile)  # of this start: another process of the job, on another node
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    hold(folder.with_name("other"), dataclasses.replace(elsewhere(), job="18"))
    assert isinstance(take_if_dead(folder), LockFile)
    assert not isinstance(take_if_dead(folder.with_name("other")), LockFile)


def test_who_looked_long_ago_cannot_take_what_others_took_since(folder, monkeypatch):
    hold(folder, process_that_has_ended())
    seen = holder(folder)
    take(folder, seen).release()
    current = take(folder)
    assert take(folder, seen) is None
    # Even one that had passed its look before all of that, and whose number has been cleared away since.
    looks = [(seen.number, True)]
    look = ownership._highest
    monkeypatch.setattr(ownership, "_highest", lambda path: looks.pop() if looks else look(path))
    assert take(folder, seen) is None
    assert current.renew()


def test_a_lock_that_cannot_be_read_yet_is_respected(folder):
    lock = hold(folder, None)
    path = next(folder.glob("*.held"))
    path.write_text(json.dumps({"pid": 1})[:5])
    assert holder(folder).owner is None
    assert not isinstance(take_if_dead(folder), LockFile)
    lock.release()


def test_without_hard_links_one_still_wins(folder, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with ThreadPoolExecutor(8) as pool:
        locks = list(pool.map(lambda _: take(folder), range(8)))
    assert sum(lock is not None for lock in locks) == 1


def test_silence_is_counted_from_the_last_change_on_a_clock_that_nobody_moves(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    silence = Silence()
    assert silence.seconds("run", "beat 1") == 0
    clock[0] = 130.0
    assert silence.seconds("run", "beat 1") == 30
    assert silence.seconds("run", "beat 0") == 0


def test_renewing_is_a_sign(folder):
    lock = hold(folder, None)
    os.utime(next(folder.glob("*.held")), (0, time.time() - 1000))
    before = holder(folder)
    assert silence_on_disk(folder, before) == pytest.approx(1000, abs=5)
    lock.renew()
    assert holder(folder).pulse != before.pulse
    assert silence_on_disk(folder, holder(folder)) < 5


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        take(tmp_path / "file" / "claims")


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/mnt/not-mounted"), os.mkfifo])
def test_what_stands_in_the_place_of_the_claims_is_to_be_moved_away(tmp_path, make):
    """It was advised to make the folder writable, which it is."""
    make(tmp_path / "claims")
    line = (
        f"cannot write {tmp_path / 'claims'}: file exists. Something that is no folder stands in the place of one: "
        "move it away, or choose another folder."
    )
    with pytest.raises(StorageError) as raised:
        take_if_dead(tmp_path / "claims")
    assert str(raised.value) == line
    assert os.path.lexists(tmp_path / "claims")


def make_directory(folder):
    (folder / "00000001.held").mkdir()


def make_dangling_link(folder):
    (folder / "00000001.held").symlink_to("/mnt/not-mounted")


def make_fifo(folder):
    os.mkfifo(folder / "00000001.held")


def make_garbage(folder):
    (folder / "00000001.held").write_bytes(b'{"host": 1, \xff')


def make_wrong_types(folder):
    (folder / "00000001.held").write_text(json.dumps(dataclasses.asdict(Owner.of()) | {"pid": "-1", "began": None}))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [make_directory, make_dangling_link, make_fifo, make_garbage, make_wrong_types])
def test_a_lock_that_cannot_be_read_holds_while_it_gives_signs_and_never_blocks(folder, make):
    folder.mkdir()
    make(folder)
    found = take_if_dead(folder)
    assert not isinstance(found, LockFile)
    assert (found.owner, found.number) == (None, 1)
    os.utime(folder / "00000001.held", (0, time.time() - 601), follow_symlinks=False)
    lock = take_if_dead(folder)
    assert isinstance(lock, LockFile)
    assert lock.renew()
    lock.release()
    assert holder(folder) is None
    assert isinstance(take_if_dead(folder), LockFile)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["5.held", "x.held", "00000001.held.bak", "000000001.held", "\u0661.held", "-1.held"])
def test_a_name_that_no_lock_has_is_no_lock(folder, name):
    folder.mkdir()
    (folder / name).write_text("mine")
    assert isinstance(take_if_dead(folder), LockFile)
    assert (folder / name).read_text() == "mine"


@pytest.mark.timeout(30)
def test_locks_that_do_not_settle_are_said(folder):
    """The number after this one has a digit more, and no lock can have it."""
    folder.mkdir()
    (folder / "99999999.free").touch()
    with pytest.raises(StorageError, match="other processes keep changing its lock files"):
        take_if_dead(folder)
