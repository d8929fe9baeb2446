"""One pass feeds everything; what is recorded is not measured again, and what is not the same is."""

import dataclasses

import pytest

from experiments.config.data_sets import image_kinds
from experiments.config.metrics import METRICS
from experiments.data.scenes.scene import HELD_OUT
from experiments.evaluation.metrics.routed_tokens import first_of_kinds
from experiments.evaluation.metrics.sampled_metric import HELD_OUT_FIRST, MetricTask, caption_set
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.settings import Conditions
from experiments.evaluation.score import MetricSet, RunScorer
from experiments.flow.samplers import Guidance
from experiments.records.compute_map import ComputeMap
from experiments.records.run_folder import read_jsonl

ALL = ("shapes-geneval", "frechet-shapes", "routing")
HOW = Conditions(8, 4, 0, "ema", "fp32", SamplerSettings(2, Guidance(2.0)))


@pytest.fixture
def run(random_run):
    return random_run("routing=expert_choice")


def measured(run):
    """What is recorded, without what training did."""
    return [row for row in read_jsonl(run.run_dir.evals).rows if row["metric"] != "val_loss"]


def names(rows):
    return [row.metric for row in rows]


def test_true_renders_score_everything_and_are_near(random_run):
    """What the data draws for a caption is right by definition; held-out images count only as held out."""
    config = random_run().config
    import torch

    from experiments.data.scenes.scene import render_scenes
    from experiments.evaluation.metrics.true_images import DrawnScenes

    how = dataclasses.replace(HOW, num_images=40)
    scores = MetricSet(ALL[:2], MetricTask(config, how, how.row(config, 640)))
    seen, unseen = scores.parts
    scores.add(seen.numbers[:30], DrawnScenes(config.data.seed, 32).render(seen.numbers[:30], "validation"))
    scores.add(seen.numbers[30:], DrawnScenes(config.data.seed, 32).render(seen.numbers[30:], "validation"))
    scores.add(unseen.numbers, torch.from_numpy(render_scenes(unseen.scenes)))
    rows = {row.metric: row for row in scores.rows()}
    assert rows["shapes-geneval"].value == rows["shapes-geneval-held-out"].value == 1.0
    assert rows["frechet-shapes"].num_samples == 40
    assert rows["shapes-geneval-held-out/colors"].value == 1.0
    assert "shapes-geneval-held-out/single_object" not in rows


def test_held_out_captions_name_looks_that_training_never_shows(run):
    found = caption_set(run.config, "held_out", 10)
    assert found.numbers.start == HELD_OUT_FIRST
    assert all((thing.color, thing.shape) in HELD_OUT for scene in found.scenes for thing in scene.objects)


def test_everything_is_measured_once_and_recorded(run):
    shares = []
    rows = RunScorer(run, ALL, HOW).measure(shares.append)
    recorded = measured(run)
    assert {"shapes-geneval", "shapes-geneval-held-out", "frechet-shapes"} <= set(names(rows))
    assert {"object_compute_ratio", "branch_divergence", "sampled_dropped_share"} <= set(names(rows))
    assert [row["metric"] for row in recorded] == names(rows)
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert {row["source"] for row in read_jsonl(run.run_dir.routing_maps).rows} == {"scenes", "samples"}
    assert len(ComputeMap.load(run.run_dir.compute_map).captions) == len(
        first_of_kinds([scene.kind for scene in caption_set(run.config, "validation", 8).scenes])
    )
    again = RunScorer(run, ALL, HOW)
    assert again.missing == []
    assert sorted(names(again.measure())) == sorted(names(rows))
    assert measured(run) == recorded


@pytest.mark.parametrize(
    "changed",
    [
        {"num_images": 6},
        {"seed": 1},
        {"sampler": SamplerSettings(2, Guidance(3.0))},
        {"sampler": SamplerSettings(3, Guidance(2.0))},
        {"precision": "bf16"},
    ],
)
def test_other_conditions_are_measured_anew(run, changed):
    RunScorer(run, ["frechet-shapes"], HOW).measure()
    other = dataclasses.replace(HOW, **changed)
    assert RunScorer(run, ["frechet-shapes"], other).missing == ["frechet-shapes"]


def test_guidance_of_some_channels_is_not_taken_for_that_of_all(run):
    some = dataclasses.replace(HOW, sampler=SamplerSettings(2, Guidance(2.0, channels=2)))
    RunScorer(run, ["frechet-shapes"], some).measure()
    assert RunScorer(run, ["frechet-shapes"], HOW).missing == ["frechet-shapes"]
    assert RunScorer(run, ["frechet-shapes"], some).missing == []


def test_every_metric_recognises_what_it_has_recorded(run):
    """A row with a setting that its metric does not compare would be measured at every call."""
    rows = [row for row in METRICS.values() if row.implementation and row.fits(image_kinds(run.config))]
    names = [row.name for row in rows if not row.needs_files and row.min_images <= HOW.num_images]
    RunScorer(run, names, HOW).measure()
    assert RunScorer(run, names, HOW).missing == []


def test_other_weights_and_more_training_are_measured_anew(run):
    RunScorer(run, ["frechet-shapes"], HOW).measure()
    for changed in ({"images_seen": 1280},):
        assert RunScorer(dataclasses.replace(run, **changed), ["frechet-shapes"], HOW).missing
    assert RunScorer(run, ["frechet-shapes"], dataclasses.replace(HOW, weights="raw")).missing
    assert RunScorer(run, ["frechet-shapes"], HOW, again=True).missing


def test_the_size_of_batches_matters_only_where_routing_depends_on_it(random_run):
    for routing, depends in (("expert_choice", False), ("token_choice", True)):
        run = random_run(f"routing={routing}")
        RunScorer(run, ["frechet-shapes"], HOW).measure()
        other = dataclasses.replace(HOW, batch_images=8)
        assert bool(RunScorer(run, ["frechet-shapes"], other).missing) == depends


def test_kinds_belong_to_the_score_they_were_measured_with(run):
    RunScorer(run, ["shapes-geneval"], HOW).measure()
    RunScorer(run, ["shapes-geneval"], dataclasses.replace(HOW, num_images=4)).measure()
    rows = RunScorer(run, ["shapes-geneval"], HOW).past
    seen = [row for row in rows if not row.metric.startswith("shapes-geneval-held-out")]
    assert seen[0].num_samples == sum(row.num_samples for row in seen[1:]) == 8


def test_a_dense_run_has_no_routing(random_run):
    scorer = RunScorer(random_run("routing=dense"), ["routing"], HOW)
    assert scorer.missing == scorer.recorded == scorer.measure() == []
