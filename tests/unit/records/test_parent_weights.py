"""What a run records of the weights that it begins from, and the way out where these cannot be named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.config.designs import load_designed
from experiments.errors import RecordError
from experiments.records.parent_weights import find_parent
from experiments.records.record_types import StepRow
from experiments.records.run_folder import RunDir
from experiments.records.strict_reading import TAIL_BYTES
from experiments.training.first_weights import FirstWeights
from tests.training_runs import random_run_folder

SEEN = 640
"""The images at the checkpoint of a run of `random_run_folder`."""


def interrupted(folder: RunDir, images_seen: int) -> RunDir:
    """The same run, as if it had been stopped after so many images."""
    status = json.loads(folder.status_json.read_text())
    folder.status_json.write_text(json.dumps({**status, "state": "interrupted", "images_seen": images_seen}))
    return folder


@pytest.mark.parametrize("rows_after", [0, 3, 400])
def test_executed_flops_count_up_to_a_checkpoint_however_many_rows_follow(rows_after: int, tmp_path: Path) -> None:
    parent = random_run_folder(tmp_path / "run", "routing=expert_choice")
    step = StepRow(images_seen=0, flops=0, seconds=1, loss=1, learning_rate=1e-3, grad_norm=1, images_per_second=1)
    images = range(64, SEEN + 64 * rows_after + 1, 64)
    executed = {seen: 7.0 * min(seen, SEEN) + 11.0 * max(0, seen - SEEN) for seen in images}  # it grows dearer
    rows = [step.model_copy(update={"images_seen": seen, "executed_flops": executed[seen]}) for seen in images]
    parent.steps.write_text("".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows))
    assert (parent.steps.stat().st_size > TAIL_BYTES) == (rows_after == 400)
    record = find_parent(parent.checkpoint(SEEN), "ema").as_record()
    assert record.train_flops == 7.0 * SEEN != SEEN * parent.read_run().train_flops_per_image


def test_planned_flops_count_where_none_were_counted(tmp_path: Path) -> None:
    parent = random_run_folder(tmp_path / "run", "routing=dense")
    assert find_parent(parent.path, "ema").as_record().train_flops == SEEN * parent.read_run().train_flops_per_image


def test_weights_that_have_seen_no_images_here_are_a_parent(tmp_path: Path) -> None:
    """Imported weights are such a run: it is finished and has trained on nothing."""
    parent = random_run_folder(tmp_path / "run", "routing=dense", images_seen=0)
    words = ["model=nano", "model.num_layers=2", "routing=dense", f"train.init_from={parent.path}"]
    record = FirstWeights(load_designed(words).config).as_record()
    assert (record.images, record.train_flops, record.router) == (0, 0.0, "dense")
    child = parent.read_run().model_copy(update={"parent": record})
    assert (child.images_before, child.flops_before) == (0, 0.0)


def test_the_way_out_of_an_unfinished_parent_names_the_newest_checkpoint_there_is(tmp_path: Path) -> None:
    parent = interrupted(random_run_folder(tmp_path / "run", "routing=dense"), images_seen=700)
    newest = parent.checkpoint(SEEN)
    shutil.copytree(newest, parent.checkpoint(320))
    parent.checkpoint(700).mkdir()  # what a damaged disk has left of one
    with pytest.raises(RecordError) as caught:
        find_parent(parent.path, "ema")
    assert "is not finished (interrupted after 700 images)" in str(caught.value)
    assert str(caught.value).endswith(f"Finish it, or name one of its checkpoints, such as {newest}.")
    assert find_parent(newest, "ema").images_seen == SEEN
    shutil.rmtree(parent.checkpoints)
    with pytest.raises(RecordError, match=r"Finish it: it holds no checkpoint that could be named in its place\.$"):
        find_parent(parent.path, "ema")
