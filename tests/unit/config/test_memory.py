"""The memory arithmetic: against measured tensors, and how it moves with the layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.budget import budget
from experiments.config.memory import BUCKET_ELEMENTS, memory
from experiments.config.overrides import load_config
from tests.training_runs import environment

PROBE = Path(__file__).with_name("memory_probe.py")
FP32 = "train.precision=fp32"


def measure(*overrides):
    command = [sys.executable, str(PROBE), *overrides]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=nano", FP32, "train.batch_images=16"),
        ("model=micro", "train.precision=bf16", "routing=token_choice", "train.batch_images=8", "train.accumulation=2",
         "parallel.zero_stage=2"),
        ("model=nano", "routing=dense", "model.width=256", FP32, "train.batch_images=2", "optim.name=rmsprop"),
    ],
)  # fmt: skip
def test_every_part_is_what_a_real_step_takes(overrides):
    expected, measured = memory(load_config(overrides), on_accelerator=False), measure(*overrides)
    assert expected.activations == pytest.approx(measured["activations"], rel=0.05)
    assert expected.persistent + expected.batch == pytest.approx(measured["persistent"], rel=0.05)
    assert expected.step_peak == pytest.approx(measured["step_peak"], rel=0.1)
    measured_peak = max(measured["backward_peak"], measured["step_peak"])
    assert expected.tensors_peak == pytest.approx(measured_peak, rel=0.1)
    assert expected.peak == pytest.approx(measured["resident_peak"], rel=0.2)


def test_latents_and_text_features_take_what_was_computed(latent_set):
    data = ("data.name=latents", f"data.path={latent_set}", "model.patch_size=2", "train.batch_images=16")
    expected, measured = memory(load_config(["model=nano", FP32, *data]), False), measure("model=nano", FP32, *data)
    assert expected.activations == pytest.approx(measured["activations"], rel=0.05)
    assert expected.persistent + expected.batch == pytest.approx(measured["persistent"], rel=0.05)


def parts(*overrides, on_accelerator=False):
    return memory(load_config(overrides), on_accelerator)


def test_what_is_always_held_is_five_copies_in_fp32_and_four_and_a_half_in_bf16():
    four_bytes = 4 * budget(load_config(["model=micro"])).params_total
    assert parts("model=micro", FP32).persistent == 5 * four_bytes
    assert parts("model=micro", "train.precision=bf16").persistent == 4.5 * four_bytes


def test_auto_is_the_larger_precision_on_a_cpu_and_bf16_on_an_accelerator():
    assert parts("model=micro") == parts("model=micro", FP32)
    bf16 = parts("model=micro", "train.precision=bf16", on_accelerator=True)
    assert parts("model=micro", on_accelerator=True) == bf16


def test_processes_share_the_states_and_not_the_parameters():
    alone, four = parts("model=micro", FP32), parts("model=micro", FP32, "parallel.world=4")
    assert four.parameters == alone.parameters
    for part in ("master_weights", "moving_average", "optimizer_state", "activations", "optimizer_scratch"):
        assert getattr(four, part) == pytest.approx(getattr(alone, part) / 4, abs=16), part


def test_zero_2_shares_the_gradients_on_an_accelerator():
    world = ("model=L", "train.batch_images=4", "parallel.world=4")
    one, two = (parts(*world, f"parallel.zero_stage={stage}", on_accelerator=True) for stage in (1, 2))
    assert one.gradients == one.parameters
    assert two.gradients == two.gradient_partition == pytest.approx(one.gradients / 4, abs=16)
    assert two.peak < one.peak


def test_expert_parallelism_shares_the_experts_only():
    config = load_config(["model=micro", FP32, "parallel.world=4"])
    layout = config.parallel.model_copy(update={"expert_parallel": 4})
    spread = memory(config.model_copy(update={"parallel": layout}), on_accelerator=True)
    experts = budget(config).params_by_part["experts"]
    assert memory(config, on_accelerator=True).parameters - spread.parameters == 4 * (experts - experts // 4)
    assert spread.master_weights == memory(config, on_accelerator=True).master_weights


def test_accumulation_shrinks_activations_and_keeps_gradients_beside_them():
    one, four = parts("model=micro", FP32), parts("model=micro", FP32, "train.accumulation=4")
    assert four.activations == pytest.approx(one.activations / 4, rel=1e-3)
    assert four.backward_peak - four.activations > one.backward_peak - one.activations
    assert four.peak < one.peak


def test_an_accelerator_holds_the_whole_reduction_bucket():
    assert parts("model=nano", on_accelerator=True).reduction_bucket == 2 * BUCKET_ELEMENTS
    assert parts("model=nano").reduction_bucket == 0


def test_the_process_that_saves_gathers_everything_in_host_memory():
    total = budget(load_config(["model=micro"])).params_total
    assert parts("model=micro", on_accelerator=True).checkpoint == 16 * total
    assert parts("model=micro", "optim.name=rmsprop", "optim.momentum=0").checkpoint == 12 * total
    one_image = parts("model=nano", "model.width=512", "train.batch_images=1")
    assert one_image.peak > one_image.persistent + one_image.checkpoint > one_image.tensors_peak


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("routing=expert_choice routing.capacity_factor=4", "routing=expert_choice"),
        ("routing=shared_expert", "routing=shared_expert routing.capacity_factor=2"),
        ("routing=shared_expert", "routing=shared_expert routing.shared_factor=1"),
        ("routing=switch", "routing=switch train.mask_ratio=0.5"),
        ("model.patch_size=2", "model.patch_size=4"),
    ],
)
def test_activations_follow_the_tokens_and_slots(more, less):
    assert parts("model=micro", *more.split()).activations > parts("model=micro", *less.split()).activations


def test_the_parts_add_up_by_name():
    whole = parts("model=micro")
    names = ("parameters", "master_weights", "moving_average", "optimizer_state")
    assert sum(whole.by_part()[name] for name in names) == whole.persistent
    assert "on_accelerator" not in whole.by_part()
