"""A run that continues on the trunk of a shorter one gives the numbers of the run alone, whatever befalls the two."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from experiments.records.run_folder import RunDir, read_jsonl
from tests.training_runs import final_checkpoint, losses, numbers, start_run, wait_for_rows
from tests.two_nodes import train_on_two

pytestmark = [pytest.mark.slow, pytest.mark.multi]

# 96 images decay from 80 on, 160 from 128 on, 240 from 192 on.
WSD = ("optim.schedule=wsd", "checkpoint.keep=1")
SHORT, MIDDLE, LONG = 96, 160, 240


def options(parent=None, *others):
    return ("--no-progress", *others, *(() if parent is None else ("--branch-from", str(parent))))


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory):
    """Trains a run of so many images, once for each choice of settings and parent."""
    made = {}

    def get(images, *settings, parent=None):
        key = (images, settings, parent)
        if key not in made:
            folder = tmp_path_factory.mktemp("branch") / "run"
            done = train(folder, *WSD, f"train.images={images}", *settings, options=options(parent))
            assert done.returncode == 0, done.stderr
            made[key] = folder
        return made[key]

    return get


def averages(folder):
    """The averages of checkpoints that have made room, which `train.ema=power` keeps."""
    files = RunDir(folder).checkpoints.glob("averages_*/ema*.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same(folder, alone):
    """The rows, the samples and every bit of the last checkpoint are those of the run alone."""
    assert numbers(folder) == numbers(alone)
    assert final_checkpoint(folder) == final_checkpoint(alone)
    pictures = [
        {path.name: path.read_bytes() for path in RunDir(each).samples.glob("*.png")} for each in (folder, alone)
    ]
    assert pictures[0] == pictures[1]
    # A branch also keeps the averages of the checkpoint on which it began, where the run alone may save nothing.
    assert averages(folder).items() >= averages(alone).items()


VARIANTS = {
    "as it is": (),
    "rows, evaluations and checkpoints that do not fall on batches": (
        "log.every_images=20", "eval.every_images=28", "checkpoint.every_images=44", "checkpoint.keep=3",
    ),
    "accumulation, another shape, and a router with a balance loss": (
        "train.accumulation=2", "optim.cooldown_shape=linear", "seed=3", "routing.name=token_choice",
    ),
    "a moving average that outlasts the run, masked tokens, and a long cooldown": (
        "train.ema_halflife_images=5000", "optim.name=rmsprop", "train.mask_ratio=0.5", "optim.cooldown_share=0.7",
    ),
    "samples and metrics while training": (
        "eval.sample_images=4", "eval.sample_steps=2", "eval.metric_images=16", "eval.every_images=80",
    ),
    "averages of two widths at every checkpoint": ("train.ema=power", "checkpoint.every_images=32"),
}  # fmt: skip
"""Settings of different parts of a run stand together where none of them hides what another does."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_branch_has_every_bit_of_the_run_alone(trained, name):
    settings = VARIANTS[name]
    short, alone = trained(SHORT, *settings), trained(MIDDLE, *settings)
    branch = trained(MIDDLE, *settings, parent=short)
    assert_same(branch, alone)
    first = read_jsonl(RunDir(branch).steps).rows[0]
    assert first == read_jsonl(RunDir(short).steps).rows[0]  # with its seconds: the time of the run alone counts


def test_a_branch_takes_over_the_averages_of_its_parent(trained):
    settings = VARIANTS["averages of two widths at every checkpoint"]
    taken = averages(trained(MIDDLE, *settings, parent=trained(SHORT, *settings)))
    assert {name.split("/")[1] for name in taken} >= {"averages_000000000032", "averages_000000000064"}


def test_a_chain_of_branches_has_every_bit_of_the_run_alone(trained):
    middle = trained(MIDDLE, parent=trained(SHORT))
    assert_same(trained(LONG, parent=middle), trained(LONG))


def test_a_branch_names_its_parent_and_the_trunk_stays(trained):
    short = trained(SHORT)
    branch = RunDir(trained(MIDDLE, parent=short))
    parent = branch.read_run().parent
    record = RunDir(short).read_run()
    assert parent is not None
    assert (parent.name, parent.config_id, parent.images) == (record.name, record.config_id, 80)
    assert branch.read_run().config_id == RunDir(trained(MIDDLE)).read_run().config_id
    assert RunDir(trained(MIDDLE)).read_run().parent is None
    # checkpoint.keep=1 keeps the last one, and beside it the one that longer runs continue from
    assert sorted(path.name for path in RunDir(short).checkpoints.iterdir()) == [f"images_{n:012d}" for n in (80, 96)]
    assert sorted(path.name for path in branch.checkpoints.iterdir()) == [f"images_{n:012d}" for n in (128, 160)]


def test_what_was_measured_of_the_parent_is_not_taken_over(trained, train, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(trained(SHORT), short)
    row = {"images_seen": 80, "metric": "clip-score", "value": 1.0, "num_samples": 8, "seed": 0, "weights": "ema"}
    with RunDir(short).evals.open("a") as file:
        file.write(json.dumps(row) + "\n")
    done = train(tmp_path / "run", *WSD, f"train.images={MIDDLE}", options=options(short))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", trained(MIDDLE))


@pytest.mark.parametrize("layout", [("parallel.zero_stage=1",), ("parallel.expert_parallel=2",)])
def test_two_processes_continue_from_two_and_from_one(trained, tmp_path, layout):
    def run(images, name, parent=None):
        train_on_two(tmp_path / name, *WSD, *layout, f"train.images={images}", options=options(parent))
        return tmp_path / name

    branch, alone = run(MIDDLE, "branch", run(SHORT, "short")), run(MIDDLE, "alone")
    assert numbers(branch) == numbers(alone)
    assert final_checkpoint(branch) == final_checkpoint(alone)
    mixed = run(MIDDLE, "mixed", trained(SHORT))
    assert losses(mixed) == pytest.approx(losses(alone), rel=2e-5)


# Faults.


@pytest.mark.parametrize("num_rows", [1, 3, 5])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_parent_and_child_may_be_killed_at_any_time(train, trained, tmp_path, number, num_rows):
    short, branch = tmp_path / "short", tmp_path / "branch"
    for folder, images, parent, rows in ((short, SHORT, None, num_rows), (branch, MIDDLE, short, num_rows + 4)):
        settings = (*WSD, f"train.images={images}")
        process = start_run(folder, *settings, options=options(parent))
        wait_for_rows(folder, rows, process)
        os.kill(process.pid, number)
        process.communicate(timeout=120)
        again = train(folder, *settings, options=options(parent))
        assert again.returncode == 0, again.stderr
    assert_same(short, trained(SHORT))
    assert_same(branch, trained(MIDDLE))


@pytest.mark.parametrize("left", ["record", "rows", "unfinished checkpoint"])
def test_a_child_that_was_killed_while_it_took_over_its_trunk_takes_it_over_again(train, trained, tmp_path, left):
    short, whole, folder = trained(SHORT), RunDir(trained(MIDDLE, parent=trained(SHORT))), RunDir(tmp_path / "run")
    folder.path.mkdir()
    shutil.copyfile(whole.run_json, folder.run_json)
    if left == "rows":
        shutil.copyfile(RunDir(short).steps, folder.steps)
        shutil.copyfile(RunDir(short).evals, folder.evals)
    if left == "unfinished checkpoint":
        shutil.copytree(RunDir(short).checkpoint(80), folder.checkpoints / ".writing-images_000000000080")
        (folder.checkpoints / ".writing-images_000000000080" / "state.json").unlink()
    done = train(folder.path, *WSD, f"train.images={MIDDLE}", options=options(short))
    assert done.returncode == 0, done.stderr
    assert_same(folder.path, trained(MIDDLE))


def test_a_child_continues_without_its_parent_once_it_has_begun(train, trained, tmp_path):
    short, folder = tmp_path / "short", tmp_path / "run"
    shutil.copytree(trained(SHORT), short)
    settings = (*WSD, f"train.images={LONG}")
    process = start_run(folder, *settings, options=options(short))
    wait_for_rows(folder, 7, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    shutil.rmtree(short)
    again = train(folder, *settings, options=options(short))
    assert again.returncode == 0, again.stderr
    assert_same(folder, trained(LONG))


def test_a_run_that_began_alone_stays_alone(train, trained, tmp_path):
    folder, settings = tmp_path / "run", (*WSD, f"train.images={MIDDLE}")
    process = start_run(folder, *settings)
    wait_for_rows(folder, 1, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    again = train(folder, *settings, options=options(trained(SHORT)))
    assert again.returncode == 0, again.stderr
    assert RunDir(folder).read_run().parent is None
    assert_same(folder, trained(MIDDLE))


# Mistakes.


def refused(train, folder, *settings, options=()):
    done = train(folder, *settings, options=options)
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert not RunDir(folder).exists()
    return line


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (
            MIDDLE,
            ("seed=1",),
            "is not this run at another length: seed is 0 there and 1 here.",
        ),
        (
            MIDDLE,
            ("log.every_images=32",),
            "is not this run at another length: log.every_images is 16 there and 32 here",
        ),
        (MIDDLE, ("optim.cooldown_share=0.5",), "optim.cooldown_share is 0.2 there and 0.5 here"),
        (56, (), "has no trunk for this run: its cooldown begins after 80 images, and that of this run after 48."),
        (
            MIDDLE,
            ("optim.schedule=cosine",),
            "--branch-from does not fit optim.schedule=cosine: only",
        ),
        (MIDDLE, ("routing.name=dense", "routing.num_experts=0"), "routing.name is expert_choice there and dense here"),
    ],
)
def test_a_run_of_another_config_is_no_trunk(train, trained, tmp_path, images, settings, message):
    line = refused(train, tmp_path / "run", *WSD, f"train.images={images}", *settings, options=options(trained(SHORT)))
    assert message in line


def test_a_trunk_that_is_missing_is_named_with_the_way_out(train, trained, tmp_path):
    short = tmp_path / "short"
    settings = (*WSD, f"train.images={MIDDLE}")
    line = refused(train, tmp_path / "run", *settings, options=options(short))
    assert f"{short}/run.json" in line
    shutil.copytree(trained(SHORT), short)
    shutil.rmtree(RunDir(short).checkpoint(80))
    line = refused(train, tmp_path / "run", *settings, options=options(short))
    assert f"--branch-from {short} holds no checkpoint after 80 images, where its cooldown begins." in line
    assert "or leave --branch-from out: the run alone gives the same numbers." in line


def test_where_to_begin_is_said_once(train, trained, tmp_path):
    line = refused(
        train, tmp_path / "run", *WSD, f"train.images={MIDDLE}", options=options(trained(SHORT), "--restart")
    )
    assert "--restart and --branch-from both say where to begin. Give only one of them." in line


def test_a_damaged_trunk_is_named(train, trained, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(trained(SHORT), short)
    missing = RunDir(short).checkpoint(80) / "ema.safetensors"
    missing.unlink()
    done = train(tmp_path / "run", *WSD, f"train.images={MIDDLE}", options=options(short))
    assert done.returncode == 2
    assert "ema.safetensors is missing" in done.stderr
    shutil.copyfile(
        RunDir(trained(SHORT)).checkpoint(80) / "ema.safetensors", RunDir(short).checkpoint(80) / "ema.safetensors"
    )
    done = train(tmp_path / "run", *WSD, f"train.images={MIDDLE}", options=options(short))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", trained(MIDDLE))
