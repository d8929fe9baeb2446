"""Samples are scored while a run trains, as `ecdit evaluate` would, on any number of processes."""

import json

import pytest

from tests.preloaded import MEASURING, server
from tests.training_runs import environment, numbers
from tests.two_nodes import train_on_two

pytestmark = [pytest.mark.slow]
CADENCE = ("train.images=96", "eval.metric_images=10", "eval.sample_steps=2", "routing=expert_choice")


def scores(folder):
    """By (images seen, metric): the rows of sampled metrics."""
    rows = [row for row in numbers(folder)["evals.jsonl"] if "guidance" in row.get("settings", {})]
    return {(row["images_seen"], row["metric"]): row for row in rows}


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cadence") / "run"
    done = train(folder, *CADENCE)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_evaluation_has_a_score_and_a_distance(trained):
    found = scores(trained)
    for images_seen in (48, 96):
        assert found[images_seen, "shapes-geneval"]["num_samples"] == 10
        assert found[images_seen, "shapes-geneval-held-out"]["num_samples"] == 5
        assert found[images_seen, "frechet-shapes"]["weights"] == "ema"
    assert found[48, "frechet-shapes"]["value"] != found[96, "frechet-shapes"]["value"]


def evaluate(folder, *options):
    """What `ecdit evaluate` writes to stdout and to stderr."""
    forked = server(MEASURING).start(["evaluate", str(folder), "--images", "10", "--json", *options], environment())
    output, said = forked.communicate(timeout=120)
    assert forked.returncode == 0, said
    return output, said


def test_evaluating_the_finished_run_gives_the_same_and_skips_it(trained):
    _, said = evaluate(trained)
    assert "shapes-geneval, frechet-shapes recorded already." in said
    answer, _ = evaluate(trained, "--again")
    values = {row["metric"]: row["value"] for row in json.loads(answer)[0]["rows"]}
    trained_values = {metric: row["value"] for (images, metric), row in scores(trained).items() if images == 96}
    assert values == pytest.approx(trained_values, rel=1e-3)


@pytest.mark.multi
def test_two_processes_score_as_one(trained, tmp_path):
    folder = tmp_path / "run"
    train_on_two(folder, *CADENCE)
    one, two = scores(trained), scores(folder)
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert two[key]["value"] == pytest.approx(row["value"], rel=1e-3), key
        assert two[key]["num_samples"] == row["num_samples"]
