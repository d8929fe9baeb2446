"""What is sent, against closed forms, and how it moves with the layout."""

from __future__ import annotations

import pytest

from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.traffic import transfers


def sent(*overrides):
    """Bytes by (what, operation), in fp32."""
    config = load_config(["model=micro", "train.precision=fp32", "routing.num_experts=8", *overrides])
    return {(t.what, t.operation): t.bytes_sent for t in transfers(config, on_accelerator=True)}


TOTAL = 4 * budget(load_config(["model=micro", "routing.num_experts=8"])).params_total
EXPERTS = 4 * budget(load_config(["model=micro", "routing.num_experts=8"])).params_by_part["experts"]
FOUR = "parallel.world=4"


def test_one_process_sends_nothing():
    assert sent() == sent("parallel.zero_stage=3", "train.accumulation=4") == {}


def test_zero_0_reduces_and_zero_1_gathers_the_weights_too():
    reduced = {("gradients", "all-reduce"): 2 * TOTAL * 3 // 4}
    assert sent(FOUR, "parallel.zero_stage=0") == reduced
    assert sent(FOUR, "parallel.zero_stage=1") == {**reduced, ("updated weights", "all-gather"): TOTAL * 3 // 4}


@pytest.mark.parametrize(("zero_stage", "times"), [(0, 1), (1, 1), (2, 4)])
def test_zero_2_reduces_after_every_accumulation_step(zero_stage, times):
    once = sent(FOUR, f"parallel.zero_stage={zero_stage}")["gradients", "all-reduce"]
    four = sent(FOUR, f"parallel.zero_stage={zero_stage}", "train.accumulation=4")["gradients", "all-reduce"]
    assert four == times * once


def test_zero_3_gathers_a_small_model_once_and_a_large_one_nearly_twice():
    small = sent(FOUR, "parallel.zero_stage=3")
    assert small == {("weights", "all-gather"): TOTAL * 3 // 4, ("gradients", "reduce-scatter"): TOTAL * 3 // 4}
    large = load_config(["model=XXL", "routing.num_experts=32", "parallel.world=4", "parallel.zero_stage=3"])
    gathered, scattered = transfers(large, on_accelerator=True)
    assert 1.9 < gathered.bytes_sent / scattered.bytes_sent < 2


def test_experts_are_reduced_among_those_that_hold_the_same():
    spread = sent(FOUR, "parallel.expert_parallel=2", "parallel.zero_stage=0")
    assert spread["gradients outside experts", "all-reduce"] == 2 * (TOTAL - EXPERTS) * 3 // 4
    assert spread["gradients of experts", "all-reduce"] == 2 * (EXPERTS // 2) // 2
    alone = sent(FOUR, "parallel.expert_parallel=4", "parallel.zero_stage=0")
    assert ("gradients of experts", "all-reduce") not in alone


def test_slots_travel_four_times_a_layer_and_six_times_where_they_are_computed_again():
    config = load_config(["model=micro", "routing.num_experts=8", "train.batch_images=32"])
    local_images, layers = 32 // 4, len(config.sparse_layer_indices)
    slots = local_images * config.num_train_tokens * 2  # f_c = 2
    away = slots * config.model.width * 4 * 3 // 4
    spread = (FOUR, "parallel.expert_parallel=4", "train.batch_images=32")
    assert sent(*spread)["expert slots", "all-to-all"] == 4 * layers * away
    again = sent(*spread, "parallel.activation_checkpointing=True")
    assert again["expert slots", "all-to-all"] == 6 * layers * away
    assert sent(*spread, "train.accumulation=2")["expert slots", "all-to-all"] == 4 * layers * away


def test_a_dense_run_has_no_experts_to_spread():
    dense = ("routing=dense", "routing.num_experts=0")
    config = load_config(["model=micro", *dense, "train.batch_images=32", FOUR])
    assert {transfer.what for transfer in transfers(config, True)} == {"gradients", "updated weights"}


def test_bf16_sends_half():
    half = sent(FOUR, "train.precision=bf16")
    assert {key: 2 * size for key, size in half.items()} == sent(FOUR)
