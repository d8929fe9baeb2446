"""Samples are scored while a run trains, as `ecdit evaluate` would, on any number of processes."""

import json
import subprocess
import sys

import pytest

from experiments.records.run_folder import RunDir
from tests.training_runs import environment, numbers, train_command

pytestmark = [pytest.mark.slow]
CADENCE = ("train.images=96", "eval.metric_images=10", "eval.sample_steps=2", "routing=expert_choice")


def scores(folder):
    """By (images seen, metric): the rows of sampled metrics."""
    rows = [row for row in numbers(folder)["evals.jsonl"] if "guidance" in row.get("settings", {})]
    return {(row["images_seen"], row["metric"]): row for row in rows}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cadence") / "run"
    done = subprocess.run(
        train_command(folder, *CADENCE), capture_output=True, text=True, env=environment(), timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_evaluation_has_a_score_and_a_distance(trained):
    found = scores(trained)
    for images_seen in (48, 96):
        assert found[images_seen, "shapes-geneval"]["num_samples"] == 10
        assert found[images_seen, "shapes-geneval-held-out"]["num_samples"] == 5
        assert found[images_seen, "frechet-shapes"]["weights"] == "ema"
    assert found[48, "frechet-shapes"]["value"] != found[96, "frechet-shapes"]["value"]


def test_evaluating_the_finished_run_gives_the_same_and_skips_it(trained):
    command = [sys.executable, "-m", "ecdit_cli", "evaluate", str(trained), "--images", "10", "--json"]
    skipped = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=True)
    assert "shapes-geneval, frechet-shapes recorded already." in skipped.stderr
    again = subprocess.run(
        [*command, "--again"], capture_output=True, text=True, env=environment(), timeout=120, check=True
    )
    values = {row["metric"]: row["value"] for row in json.loads(again.stdout)[0]["rows"]}
    trained_values = {metric: row["value"] for (images, metric), row in scores(trained).items() if images == 96}
    assert values == pytest.approx(trained_values, rel=1e-3)


@pytest.mark.multi
def test_two_processes_score_as_one(trained, tmp_path):
    folder = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, *train_command(folder, *CADENCE)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=180, check=False)
    assert RunDir(folder).read_status().state == "done", done.stderr
    one, two = scores(trained), scores(folder)
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert two[key]["value"] == pytest.approx(row["value"], rel=1e-3), key
        assert two[key]["num_samples"] == row["num_samples"]
