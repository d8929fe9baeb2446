"""What is watched is what the model did, and the claim about objects is a number that can come out either way."""

import warnings

import numpy as np
import pytest
import torch

from ecdit_cli.app import run as command
from experiments.data.scenes.scene import draw_scenes
from experiments.evaluation.inference.routing_maps import (
    TIMES,
    RoutingWatcher,
    bootstrap,
    measure_scenes,
    token_places,
)
from experiments.evaluation.sampling.batches import sampled_batches
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.settings import Conditions
from experiments.flow.samplers import Guidance

CAPTIONS = ["a red circle", "two blue squares", "a heart"]


def conditions(scale: float = 3.0, num_images: int = 3, batch_images: int = 2, sampler: str = "euler") -> Conditions:
    return Conditions(num_images, batch_images, 0, "ema", "fp32", SamplerSettings(4, Guidance(scale), sampler=sampler))


def watched(run, how: Conditions, mapped=(0, 2)) -> RoutingWatcher:
    watcher = RoutingWatcher(run, ["colors", "counting", "single_object"], mapped)
    for batch in sampled_batches(run.model, run.config, CAPTIONS, how, watcher=watcher):
        watcher.end_batch(batch.images_BCHW)
    return watcher


def test_tokens_are_on_objects_or_background_or_on_an_edge():
    scenes = draw_scenes(0, range(20), "validation")
    objects, background = token_places(scenes, 4)
    assert objects.shape == background.shape == (20, 64)
    assert not (objects & background).any()
    assert objects.any(dim=1).all()
    first = scenes[0]
    mask = torch.from_numpy(first.masks().any(axis=0))
    token = int(objects[0].nonzero()[0])
    row, column = divmod(token, 8)
    assert mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].float().mean() >= 0.5
    row, column = divmod(int(background[0].nonzero()[0]), 8)
    assert not mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].any()


def test_compute_on_objects_is_what_the_router_gives_them(random_run):
    """The ratio of the means that the maps hold, layer by layer."""
    run = random_run("routing=expert_choice", "routing.num_experts=2", "routing.capacity_factor=0.25")
    measured = measure_scenes(run, conditions(num_images=6), lambda: None)
    (row,) = measured.evals
    assert row.metric == "object_compute_ratio"
    assert row.interval_low <= row.value <= row.interval_high
    whole = [each for each in measured.maps if each.time is None]
    assert [each.layer for each in whole] == list(run.config.sparse_layer_indices)
    mean_objects = np.mean([each.object_experts for each in whole])
    mean_background = np.mean([each.background_experts for each in whole])
    assert row.value == pytest.approx(mean_objects / mean_background, rel=1e-4)


def test_where_every_token_gets_the_same_the_ratio_is_one(random_run):
    """Token choice without a capacity limit gives every token exactly k experts."""
    run = random_run("routing=token_choice", "routing.capacity_factor=null")
    (row,) = measure_scenes(run, conditions(num_images=4), lambda: None).evals
    assert (row.value, row.interval_low, row.interval_high) == (1.0, 1.0, 1.0)


def test_scenes_are_measured_at_every_time_in_every_routed_layer(random_run):
    run = random_run("routing=expert_choice")
    calls = []
    measured = measure_scenes(run, conditions(num_images=3, batch_images=2), lambda: calls.append(1))
    assert len(calls) == 2 * len(TIMES)
    layers = list(run.config.sparse_layer_indices)
    assert [(row.layer, row.time) for row in measured.maps] == [(k, t) for k in layers for t in (*TIMES, None)]
    assert all(row.source == "scenes" and sum(row.load) == pytest.approx(1, abs=1e-4) for row in measured.maps)
    assert all((row.load_by_position is not None) == (row.time is None) for row in measured.maps)


def test_scenes_do_not_depend_on_the_batch_where_routing_does_not(random_run):
    run = random_run("routing=expert_choice", "routing.group_images=1")
    one, two = (measure_scenes(run, conditions(num_images=4, batch_images=size), lambda: None) for size in (1, 4))
    assert one.evals[0].value == pytest.approx(two.evals[0].value, rel=1e-4)


def test_branches_diverge_only_where_guidance_runs_both(random_run):
    run = random_run("routing=expert_choice")
    guided = watched(run, conditions(3.0)).measured(conditions(3.0).row(run.config, 640))
    alone = watched(run, conditions(1.0)).measured(conditions(1.0).row(run.config, 640))
    values = {row.metric: row for row in guided.evals}
    assert set(values) == {"sampled_dropped_share", "branch_divergence"}
    divergence = values["branch_divergence"]
    assert 0 < divergence.interval_low <= divergence.value <= divergence.interval_high < 1
    assert [row.metric for row in alone.evals] == ["sampled_dropped_share"]
    assert all(row.divergence is None for row in alone.maps)
    assert all(row.divergence is not None for row in guided.maps)


def test_equal_branches_do_not_diverge(random_run):
    """With the null caption as the caption, both branches are the same."""
    run = random_run("routing=expert_choice")
    watcher = RoutingWatcher(run, ["", ""], [])
    list(sampled_batches(run.model, run.config, ["", ""], conditions(3.0, num_images=2), watcher=watcher))
    values = {row.metric: row.value for row in watcher.measured(conditions().row(run.config, 640)).evals}
    assert values["branch_divergence"] == 0.0


def test_the_dropped_share_is_that_of_the_conditional_branch(random_run):
    run = random_run("routing=expert_choice", "routing.num_experts=4", "routing.capacity_factor=0.25")
    measured = watched(run, conditions()).measured(conditions().row(run.config, 640))
    whole = [row.dropped_share for row in measured.maps if row.time is None]
    assert measured.evals[0].value == pytest.approx(np.mean(whole), abs=1e-5)
    assert measured.evals[0].value >= 0.75


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_compute_map_is_of_the_images_asked_for(random_run, sampler, tmp_path):
    run = random_run("routing=expert_choice", "routing.num_experts=4")
    how = conditions(sampler=sampler)
    found = watched(run, how).compute_map(dict(enumerate(CAPTIONS)))
    calls = 8 if sampler == "heun" else 4
    assert found.captions == ("a red circle", "a heart")
    assert found.images_BHWC.shape == (2, 32, 32, 3)
    assert found.experts_BKNT.shape == (2, len(run.config.sparse_layer_indices), calls, 64)
    slots = run.config.routing.capacity_factor * 64  # of all experts together, for one image
    assert (found.experts_BKNT.sum(axis=3) == slots).all()
    whole = torch.cat([batch.images_BCHW for batch in sampled_batches(run.model, run.config, CAPTIONS, how)])
    expected = ((whole[2] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(found.images_BHWC[1] - expected).max() <= 1


def test_the_bootstrap_covers_what_it_should():
    """Of a ratio of means the 95% interval holds the truth in about 95% of samples."""
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        sums = np.stack([random.exponential(2.0, 60), random.exponential(1.0, 60)], axis=1)
        _, low, high = bootstrap(sums, lambda each: each[..., 0] / each[..., 1], seed=trial)
        covered += low <= 2.0 <= high
    assert 178 <= covered <= 198


def test_a_ratio_that_some_resamples_do_not_have_has_no_interval():
    """One image of two has nothing to divide by, so that a quarter of the resamples have neither."""
    sums = np.array([[3.0, 2.0], [1.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap(sums, lambda each: each[..., 0] / each[..., 1]) == (2.0, None, None)


def test_without_tokens_on_objects_there_is_no_ratio_and_the_rest_is_measured(random_run, capsys):
    """A patch of half the image is covered by an object to less than a half."""
    run = random_run("routing=expert_choice", "model.patch_size=16", "routing.num_experts=2")
    how = conditions(num_images=4)
    objects, _ = token_places(draw_scenes(run.config.data.seed, range(4), "validation"), 16)
    assert not objects.any()
    measured = measure_scenes(run, how, lambda: None)
    assert measured.evals == []
    assert measured.maps
    few = ["--images", "4", "--steps", "1", "--json"]
    assert command(["evaluate", str(run.run_dir.path), "--metrics", "routing", *few]) == 0
    assert "object_compute_ratio" not in capsys.readouterr().out
