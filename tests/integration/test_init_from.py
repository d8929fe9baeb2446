"""Runs that begin from the weights of another one, through `ecdit train`: lineage, resumption, layouts and refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch

from experiments.records.run_folder import RunDir, read_jsonl
from experiments.training.checkpoint import open_checkpoint
from tests.training_runs import final_checkpoint, losses, numbers, start_run, wait_for_rows
from tests.two_nodes import train_on_two

pytestmark = [pytest.mark.slow, pytest.mark.multi]

SHORT = ("train.images=96",)
UPCYCLED = (
    *SHORT, "routing.name=token_choice", "routing.capacity_factor=None", "routing.eval_capacity_factor=None",
    "routing.group_images=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def dense(train, tmp_path_factory):
    """A finished dense run."""
    folder = tmp_path_factory.mktemp("parent") / "dense"
    done = train(folder, *SHORT, "routing.name=dense")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def upcycled(train, dense, tmp_path_factory):
    """A finished run that was upcycled from it, and what it said."""
    folder = tmp_path_factory.mktemp("child") / "run"
    done = train(folder, *UPCYCLED, f"train.init_from={dense}")
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def first_loss(folder):
    return read_jsonl(RunDir(folder).steps).rows[0]["loss"]


def test_the_record_names_the_parent_and_what_it_cost(dense, upcycled):
    folder, talk = upcycled
    record, theirs = RunDir(folder).read_run(), RunDir(dense).read_run()
    parent = record.parent
    assert (parent.name, parent.config_id, parent.images) == (theirs.name, theirs.config_id, 96)
    assert (parent.router, parent.weights, parent.parent) == ("dense", "ema", None)
    assert parent.train_flops == 96 * theirs.train_flops_per_image == record.flops_before
    assert record.images_before == 96
    assert record.config["train"]["init_fingerprint"] == parent.fingerprint
    assert parent.tensors == {
        "taken": {"modulation": 3, "embed": 2, "time": 6, "text": 11, "attention": 10, "cross_attention": 10, "ffn": 2,
                  "head": 2},
        "copied": {"experts": 2},
        "new": {"router": 1},
    }  # fmt: skip
    assert f"First weights: ema of {theirs.name} after 96 images" in talk
    assert "The first loss differs" not in talk


def test_a_chain_of_parents_counts_all_of_them(train, dense, upcycled, tmp_path):
    done = train(tmp_path / "run", *UPCYCLED, "routing.num_experts=8", f"train.init_from={upcycled[0]}")
    assert done.returncode == 0, done.stderr
    record = RunDir(tmp_path / "run").read_run()
    middle, first = RunDir(upcycled[0]).read_run(), RunDir(dense).read_run()
    assert record.parent.parent == middle.parent
    assert record.images_before == 192
    assert record.flops_before == 96 * (middle.train_flops_per_image + first.train_flops_per_image)


def test_the_id_counts_the_weights_and_not_their_place(train, dense, upcycled, tmp_path):
    shutil.copytree(dense, tmp_path / "elsewhere")
    again = train(upcycled[0], *UPCYCLED, f"train.init_from={tmp_path / 'elsewhere'}")
    assert again.returncode == 0, again.stderr
    assert "left alone" in again.stderr
    raw = train(upcycled[0], *UPCYCLED, f"train.init_from={tmp_path / 'elsewhere'}", "train.init_weights=raw")
    assert raw.returncode == 2
    assert "holds another run" in raw.stderr


def test_a_run_goes_on_without_its_parent_to_the_same_bits(train, dense, upcycled, tmp_path):
    parent, folder = tmp_path / "dense", tmp_path / "run"
    shutil.copytree(dense, parent)
    settings = (*UPCYCLED, f"train.init_from={parent}")
    process = start_run(folder, *settings)
    wait_for_rows(folder, 3, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    shutil.rmtree(parent)
    again = train(folder, *settings)
    assert again.returncode == 0, again.stderr
    assert numbers(folder) == numbers(upcycled[0])
    assert final_checkpoint(folder) == final_checkpoint(upcycled[0])


@pytest.mark.parametrize(
    "layout", [("parallel.expert_parallel=2",), ("parallel.zero_stage=3",), ("parallel.zero_stage=0",)]
)
def test_two_processes_begin_with_the_weights_of_one(dense, upcycled, tmp_path, layout):
    train_on_two(tmp_path / "run", *UPCYCLED, *layout, f"train.init_from={dense}")
    assert losses(tmp_path / "run") == pytest.approx(losses(upcycled[0]), rel=2e-5)


@pytest.mark.parametrize(
    "settings", [("parallel.zero_stage=3",), ("parallel.zero_stage=0",), ("train.accumulation=2",)]
)
def test_one_process_of_any_stage_begins_alike(train, dense, upcycled, tmp_path, settings):
    done = train(tmp_path / "run", *UPCYCLED, *settings, f"train.init_from={dense}")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(upcycled[0]), rel=2e-5)


def test_in_16_bits_the_weights_are_taken_too(train, dense, upcycled, tmp_path):
    done = train(tmp_path / "run", *UPCYCLED, "train.precision=bf16", f"train.init_from={dense}")
    assert done.returncode == 0, done.stderr
    assert first_loss(tmp_path / "run") == pytest.approx(first_loss(upcycled[0]), rel=0.01)


def test_the_optimizer_is_carried_on(train, dense, tmp_path):
    settings = (*UPCYCLED, "train.init_optimizer=carried", "train.init_weights=raw", f"train.init_from={dense}")
    done = train(tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    state = open_checkpoint(run.checkpoint(96), run.read_run().config_id, ["optimizer"]).state
    assert state["optimizer_counters"]["step"] == 24  # 12 steps of the parent and 12 of this run


def test_a_checkpoint_of_a_run_that_goes_on_may_be_named(train, dense, tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(dense, parent)
    status = json.loads(RunDir(parent).status_json.read_text())
    RunDir(parent).status_json.write_text(json.dumps({**status, "state": "interrupted"}))
    refused = train(tmp_path / "run", *UPCYCLED, f"train.init_from={parent}")
    assert refused.returncode == 2
    assert "is not finished (interrupted after 96 images)" in refused.stderr
    named = train(tmp_path / "run", *UPCYCLED, f"train.init_from={RunDir(parent).checkpoint(64)}")
    assert named.returncode == 0, named.stderr
    assert RunDir(tmp_path / "run").read_run().parent.images == 64


@pytest.mark.parametrize("options", [("--no-progress",), ("--dry-run",)])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.width=32",), "model.width=32 does not fit train.init_from={parent}, whose model.width is 64. "
         "Use model.width=64, or train without train.init_from."),
        (("model.num_layers=4",), "model.num_layers=4 does not fit train.init_from={parent}"),
        (("model.text_width=32",), "model.text_width=32 does not fit train.init_from={parent}"),
        (("routing.expert=swiglu",), "routing.expert=swiglu does not fit train.init_from={parent}"),
        (("routing.expert_factor=2",), "routing.expert_factor=2 does not fit train.init_experts=copy: experts are 128 "
         "wide, and the feed-forward of train.init_from={parent} is 256 wide. Use routing.expert_factor=4, or "
         "train.init_experts=split."),
        (("routing.expert_factor=3", "train.init_experts=split"), "are no equal parts of a feed-forward"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_folder_is_made(train, dense, tmp_path, settings, message, options):
    refused = train(tmp_path / "run", *UPCYCLED, *settings, f"train.init_from={dense}", options=options)
    assert refused.returncode == 2
    assert message.format(parent=dense) in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_no_run_is_refused(train, tmp_path):
    refused = train(tmp_path / "run", *UPCYCLED, f"train.init_from={tmp_path / 'nothing'}")
    assert refused.returncode == 2
    assert "is no run, no checkpoint of one and no folder of exported weights" in " ".join(refused.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_resolution_begins_and_trains(train, dense, tmp_path):
    settings = (*SHORT, "routing.name=dense", "data.image_size=64", f"train.init_from={dense}")
    done = train(tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    config = RunDir(tmp_path / "run").read_run().config
    assert (config["model"]["position_side"], config["flow"]["time_shift"]) == (8, 2.0)
    assert torch.tensor(losses(tmp_path / "run")).isfinite().all()


def test_a_trunk_that_began_from_a_parent_hands_the_lineage_on(train, dense, tmp_path):
    settings = (*UPCYCLED, "optim.schedule=wsd", f"train.init_from={dense}")
    for name, images, options in (
        ("short", 96, ()),
        ("alone", 160, ()),
        ("branch", 160, ("--branch-from", str(tmp_path / "short"))),
    ):
        done = train(tmp_path / name, *settings, f"train.images={images}", options=("--no-progress", *options))
        assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "branch") == numbers(tmp_path / "alone")
    branch, alone = (RunDir(tmp_path / name).read_run() for name in ("branch", "alone"))
    assert branch.parent.is_trunk
    assert branch.parent.parent == alone.parent
    assert branch.flops_before == alone.flops_before > 0
