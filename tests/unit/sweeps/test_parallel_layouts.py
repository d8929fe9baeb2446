"""A layout is priced by closed forms, and the search finds what brute force finds."""

from __future__ import annotations

import itertools
import time

import pytest

from experiments.config.budget import budget
from experiments.config.multiples import divisors
from experiments.config.overrides import load_config
from sweeps.cost import table_device
from sweeps.devices import DEVICES, UTILISATION
from sweeps.layout_search import is_accepted, laid_out
from sweeps.parallel_layouts import DAY, plan_layout, search

H100 = table_device("H100")
PAPER = ("model=M", "routing.num_experts=64", "train.batch_images=512")


def planned(*overrides, place=H100):
    return plan_layout(load_config(overrides), place)


def test_one_device_computes_and_sends_nothing():
    plan = planned("model=XL", "train.images=3200")
    assert plan.num_steps == 100
    assert plan.seconds == pytest.approx(plan.train_flops_per_step * 100 / (UTILISATION * 989.4e12))
    assert plan.device_hours == pytest.approx(plan.seconds / 3600)
    assert plan.transfers == []


def test_what_is_computed_again_takes_time_and_is_no_training_flop():
    plain, again = planned("model=XL"), planned("model=XL", "parallel.activation_checkpointing=True")
    assert again.train_flops_per_step == plain.train_flops_per_step
    assert 1.3 < again.executed_flops_per_step / plain.executed_flops_per_step < 4 / 3
    assert again.compute_seconds / plain.compute_seconds == pytest.approx(
        again.executed_flops_per_step / plain.executed_flops_per_step
    )


def test_a_ring_runs_at_the_links_of_a_node_and_across_nodes_at_its_network_cards():
    size = 2 * budget(load_config(["model=L", "routing=dense"])).params_total
    device = DEVICES["H100"]
    for world, bandwidth in ((8, device.node_gigabytes_per_second), (16, 8 * device.network_gigabytes_per_second)):
        plan = planned("model=L", "routing=dense", f"parallel.world={world}", "parallel.zero_stage=1")
        ring = size * (world - 1) / world
        assert plan.communication_seconds == pytest.approx(3 * ring / (1e9 * bandwidth), rel=1e-6)


def test_processes_that_hold_the_same_experts_have_a_network_card_each():
    config = load_config([*PAPER, "parallel.world=512", "parallel.expert_parallel=64"])
    plan = plan_layout(config, H100)
    by_name = {one.what: seconds for one, seconds in zip(plan.transfers, plan.transfer_seconds, strict=True)}
    sent = {one.what: one.bytes_sent for one in plan.transfers}
    assert by_name["gradients of experts"] == pytest.approx(sent["gradients of experts"] / 50e9)
    near = 7 / 63
    assert by_name["expert slots"] == pytest.approx(sent["expert slots"] * (1 - near) / 50e9)


def test_an_unknown_network_leaves_the_time_open():
    inside = planned("model=L", "parallel.world=8", place=table_device("L40S"))
    across = planned("model=L", "parallel.world=16", place=table_device("L40S"))
    assert inside.seconds is not None
    assert across.compute_seconds is not None
    assert across.communication_seconds is across.seconds is across.device_hours is None


def test_the_paper_model_fits_as_the_issue_says_and_is_planned_at_once():
    started = time.process_time()
    plan = plan_layout(load_config([*PAPER, "parallel.world=512", "parallel.expert_parallel=64"]), H100)
    assert time.process_time() - started < 1
    assert plan.fits
    assert not plan_layout(load_config([*PAPER, "parallel.world=8", "parallel.expert_parallel=8"]), H100).fits


def test_the_search_finds_the_cheapest_of_all_layouts():
    place = table_device("A100-40GB", max_world=16)
    config = load_config(["model=XL", "routing.num_experts=16", "train.batch_images=32"])
    best = search(config, place)[0]
    everything = []
    for world, zero, again in itertools.product((1, 2, 4, 8, 16), (1, 2, 3), (False, True)):
        for accumulation, spread in itertools.product(divisors(32 // world, 32), divisors(world, 16)):
            candidate = laid_out(config, world, accumulation, zero, spread, again)
            if is_accepted(candidate):
                everything.append(plan_layout(candidate, place))
    fitting = [plan for plan in everything if plan.fits]
    assert len(fitting) < len(everything)
    assert best.device_hours == pytest.approx(min(plan.device_hours for plan in fitting), rel=1e-5)


def test_a_search_within_days_takes_more_devices():
    config = load_config([*PAPER, "train.images=400000000"])
    cheap, quick = search(config, H100)[0], search(config, H100, most_seconds=2.4 * DAY)[0]
    assert cheap.seconds > 2.4 * DAY >= quick.seconds
    assert quick.config.parallel.world > cheap.config.parallel.world
    assert search(load_config(["model=nano", "train.batch_images=8"]), H100, most_seconds=1e-6) == []


def test_a_search_says_how_far_it_is():
    seen = []
    search(load_config(["model=nano", "train.batch_images=8"]), H100, on_progress=lambda *at: seen.append(at))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_whole_nodes_only():
    worlds = [plan.config.parallel.world for plan in search(load_config(["train.batch_images=96"]), H100)]
    assert set(worlds) == {1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 96}
