"""First starts of one run at the same moment: one writes, the other is told, and both keep to one `run.json`."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.config.routers import trained_names
from experiments.errors import ConfigError, RecordError, StorageError
from experiments.records.record_types import PluginRecord
from experiments.records.run_lock import lock_folder, settle_record
from experiments.records.writer import RecordWriter

BATCH = ("routing.group_images=batch",)


def start(run_dir, record, barrier, outcomes):
    barrier.wait()
    try:
        lock_folder(run_dir, record, images_seen=0)
    except RecordError as error:
        outcomes.put((str(error), settle_record(run_dir, record).created_at))
    else:
        outcomes.put((None, settle_record(run_dir, record).created_at))
        time.sleep(0.5)


def test_of_many_first_starts_at_once_one_gets_the_folder(run_dir, make_record):
    context = multiprocessing.get_context("fork")
    barrier, outcomes = context.Barrier(6), context.SimpleQueue()
    records = [make_record().model_copy(update={"created_at": f"start {number}"}) for number in range(6)]
    starters = [context.Process(target=start, args=(run_dir, record, barrier, outcomes)) for record in records]
    for starter in starters:
        starter.start()
    results = [outcomes.get() for _ in starters]
    for starter in starters:
        starter.join()
    refusals = [refusal for refusal, _ in results if refusal is not None]
    assert len(refusals) == 5
    assert all("is being written by another process" in refusal for refusal in refusals)
    assert len({created_at for _, created_at in results}) == 1


def test_who_was_taken_over_is_told_and_writes_no_status(run_dir, make_record):
    _, mine = lock_folder(run_dir, make_record(), images_seen=0)
    mine.renew()
    (held,) = run_dir.locks.glob("*.held")
    held.rename(held.with_name("00000002.held"))
    with pytest.raises(RecordError, match="was taken over by another process"):
        mine.renew()
    mine.release()


def follows_processes(router):
    """Whether the batch of one process counts, where the router can take it as its routing group."""
    try:
        ids = {config_id(load_config([f"routing={router}", *BATCH, f"parallel.world={world}"])) for world in (1, 2)}
    except ConfigError:
        return False
    return len(ids) == 2


@pytest.mark.parametrize("router", [name for name in trained_names() if follows_processes(name)])
@pytest.mark.parametrize(("there", "here"), [(1, 2), (2, 1), (2, 4)])
def test_a_run_whose_groups_follow_the_processes_goes_on_with_as_many(router, there, here, run_dir, make_record):
    begun, wanted = (record_of(make_record, router, "batch", world) for world in (there, here))
    run_dir.path.mkdir()
    settle_record(run_dir, begun)
    assert settle_record(run_dir, begun).config_id == begun.config_id
    with pytest.raises(RecordError) as refusal:
        settle_record(run_dir, wanted)
    assert str(refusal.value) == (
        f"{run_dir.path} was begun with parallel.world={there} and cannot go on with parallel.world={here}: its "
        "routing groups, thresholds or losses of routing follow the images that processes take at a time, so that its "
        f"losses would change. Continue it on {there} process(es), or use another --run-dir; with "
        "routing.group_images=1 a new run of most routers can go on with any number."
    )
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("here", [1, 2, 4])
def test_a_run_whose_id_does_not_count_its_two_processes_goes_on_with_two(here, run_dir, make_record):
    """An earlier version gave the same id with any number of processes."""
    begun = record_of(make_record, "token_choice", "batch", 2)
    begun = begun.model_copy(update={"config_id": record_of(make_record, "token_choice", "batch", 1).config_id})
    run_dir.path.mkdir()
    settle_record(run_dir, begun)
    wanted = record_of(make_record, "token_choice", "batch", here)
    if here == 2:
        assert settle_record(run_dir, wanted) == begun
        return
    with pytest.raises(RecordError, match=f"begun with parallel.world=2 and cannot go on with parallel.world={here}"):
        settle_record(run_dir, wanted)


def test_the_way_out_works_and_another_difference_is_named_first(run_dir, make_record):
    begun = record_of(make_record, "token_choice", 1, 1)
    run_dir.path.mkdir()
    settle_record(run_dir, begun)
    assert settle_record(run_dir, record_of(make_record, "token_choice", 1, 2)).config_id == begun.config_id
    with pytest.raises(RecordError, match=r"routing\.group_images is 1 there and batch here"):
        settle_record(run_dir, record_of(make_record, "token_choice", "batch", 2))


def record_of(make_record, router, group_images, world):
    return make_record(f"routing={router}", f"routing.group_images={group_images}", f"parallel.world={world}")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/mnt/not-mounted")])
def test_a_lock_that_cannot_be_read_refuses_the_folder_and_is_named(run_dir, make_record, make):
    run_dir.locks.mkdir(parents=True)
    make(run_dir.locks / "00000001.held")
    with pytest.raises(RecordError) as caught:
        lock_folder(run_dir, make_record(), images_seen=0)
    assert f"({run_dir.locks}/00000001.held cannot be read: " in str(caught.value)
    assert str(caught.value).endswith("If no process works there, remove that file.")


def test_a_folder_that_was_deleted_is_not_taken_over(run_dir, make_record):
    writer = RecordWriter.open(run_dir, make_record(), 0)
    shutil.rmtree(run_dir.path)
    with pytest.raises(StorageError, match=r"run was deleted or moved while this run wrote to it\."):
        writer.status("running", 0)
    assert not run_dir.path.exists()
    writer.close()


PLUGIN = PluginRecord(kind="router", name="mine", sha256="a" * 64, source="plugin /home/me/mine.py")
CHANGED = PLUGIN.model_copy(update={"sha256": "b" * 64, "source": "plugin /tmp/mine.py"})


@pytest.mark.parametrize(
    ("begun", "now", "refusal"),
    [
        ([PLUGIN], [PLUGIN], None),
        (None, [PLUGIN], None),  # an earlier version recorded none
        (None, None, None),
        (
            [PLUGIN],
            [CHANGED],
            "the router 'mine' has changed since this run began: the SHA-256 of its source was aaaaaaaaaaaa, and is "
            "bbbbbbbbbbbb in plugin /tmp/mine.py. Bring its source back, or train in another --run-dir.",
        ),
        (
            [PLUGIN],
            None,
            "the router 'mine' of this run is a plugin that is not loaded. Give it with --plugin FILE.py, or install "
            "its package; it was plugin /home/me/mine.py.",
        ),
    ],
)
def test_a_run_keeps_to_the_source_of_its_plugins(begun, now, refusal, run_dir, make_record):
    record = make_record()
    run_dir.path.mkdir()
    settle_record(run_dir, record.model_copy(update={"plugins": begun}))
    assert ("plugins" in json.loads(run_dir.run_json.read_text())) is (begun is not None)
    again = record.model_copy(update={"plugins": now})
    if refusal is None:
        assert settle_record(run_dir, again).plugins == begun
        return
    with pytest.raises(RecordError) as refused:
        settle_record(run_dir, again)
    assert str(refused.value) == f"{run_dir.run_json}: {refusal}"
    assert refused.value.exit_code == 2
