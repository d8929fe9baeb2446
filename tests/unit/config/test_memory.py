"""The memory arithmetic: against measured tensors, and how it moves with the layout."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.budget import budget
from experiments.config.memory import BUCKET_ELEMENTS, HOST_SLACK, MIRROR_BYTES, PROCESS_BYTES, memory
from experiments.config.overrides import load_config
from experiments.config.tensors import EXPERT_GROUP_ELEMENTS, shares
from tests.preloaded import server
from tests.training_runs import environment

PROBE = Path(__file__).with_name("memory_probe.py")
FP32 = "train.precision=fp32"
BUCKET = 2_000_000
RESIDENT = 0.12
"""Two machines with the same packages differed by 3% of a training process's resident set."""

MICRO = ("model=micro", "train.batch_images=32")
SMALL_BATCH = ("model=micro", "train.batch_images=4")
MMDIT = ("model=micro", "model.block=mmdit", "routing.text_experts=4")


def measure(*overrides, world=1, bucket=None, resident=False):
    """Returns what the process of rank 0 measured, of `world` that run together.

    It is started anew where its resident set counts: that of a forked process lacks the pages of libraries. The other
    ranks are only there to be talked to, and are forked from a process that has imported everything.
    """
    words = [*(["--bucket", str(bucket)] if bucket else []), *overrides, f"parallel.world={world}"]
    address = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {} for rank in range(world)]
    pipe = subprocess.PIPE
    processes = [
        server().start(words, {**environment(), **rank}, "tests.unit.config.memory_probe:main")
        if number > 0 or not resident
        else subprocess.Popen(
            [sys.executable, str(PROBE), *words], stdout=pipe, stderr=pipe, text=True, env={**environment(), **rank}
        )
        for number, rank in enumerate(ranks)
    ]
    ended = [process.communicate(timeout=240) for process in processes]
    assert not any(process.returncode for process in processes), [err for _, err in ended]
    return json.loads(ended[0][0].splitlines()[-1])


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def assert_as_measured(expected, measured):
    """Every part within 10%, the states and the activations within 5%."""
    assert expected.activations + expected.gathered == pytest.approx(measured["activations"], rel=0.05)
    assert expected.persistent + expected.batch == pytest.approx(measured["persistent"], rel=0.05)
    assert expected.step_peak == pytest.approx(measured["step_peak"], rel=0.1)
    measured_peak = max(measured["backward_peak"], measured["step_peak"])
    assert expected.tensors_peak == pytest.approx(measured_peak, rel=0.1)


def resident(expected):
    """Of a process that saves nothing and mirrors nothing."""
    return expected.peak - expected.checkpoint - expected.wandb_client


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=nano", FP32, "train.batch_images=16"),
        ("model=micro", "train.precision=bf16", "routing=token_choice", "train.batch_images=8", "train.accumulation=2",
         "parallel.zero_stage=2"),
        ("model=micro", "train.batch_images=64", FP32, "parallel.activation_checkpointing=True"),
        ("model=mini", FP32, "train.batch_images=8"),
        (*MMDIT, "routing=shared_expert", FP32, "train.batch_images=16"),
    ],
)  # fmt: skip
def test_every_part_and_the_resident_set_are_what_a_real_step_takes(overrides):
    expected, measured = memory(load_config(overrides), on_accelerator=False), measure(*overrides, resident=True)
    assert_as_measured(expected, measured)
    assert resident(expected) == pytest.approx(measured["resident_peak"], rel=RESIDENT)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=nano", "routing=dense", "model.width=256", FP32, "train.batch_images=2", "optim.name=rmsprop"),
        ("model=micro", "routing=shared_expert", FP32, "train.batch_images=16"),
        (*MICRO, FP32, "parallel.zero_stage=0"),
        (*MICRO, FP32, "optim.parametrization=mup", "model.base_width=64"),
        (*MICRO, FP32, "train.ema=power"),
        ("model=nano", FP32, "train.batch_images=16", "flow.objective=ddpm", "flow.learned_sigma=True"),
        ("model=micro", "train.precision=bf16", "routing=dense", "train.batch_images=32", "flow.objective=ddpm",
         "flow.learned_sigma=True"),
        (*MICRO, FP32, "routing.capacity_warmup_images=64", "routing.capacity_by_layer=1.5,1,0.5"),
        ("model=micro", "model.block=dit", "routing=shared_expert", FP32, "train.batch_images=16"),
        (*MICRO, "model.positions=rope", "train.mask_ratio=0.5", "train.precision=bf16"),
        ("model=micro", "model.block=dit", "model.qk_norm=rms", "train.precision=bf16", "train.batch_images=16"),
        ("model=micro", "model.block=dit", "model.qk_norm=affine", "model.ffn=swiglu", FP32, "train.batch_images=16"),
        ("model=micro", "model.block=dit", FP32, "train.batch_images=64", "parallel.activation_checkpointing=True"),
        ("model=micro", "model.block=mmdit", "routing=dense", "model.qk_norm=layer", FP32, "train.batch_images=16"),
        ("model=micro", "model.block=mmdit", "model.qk_norm=rms", "train.precision=bf16", "train.batch_images=16"),
        (*MMDIT, FP32, "train.batch_images=64", "parallel.activation_checkpointing=True"),
    ],
)  # fmt: skip
def test_every_part_is_what_a_real_step_takes(overrides):
    assert_as_measured(memory(load_config(overrides), on_accelerator=False), measure(*overrides))


@pytest.mark.multi
@pytest.mark.parametrize("overrides", [(FP32,), (FP32, "parallel.zero_stage=3"), (FP32, "parallel.expert_parallel=2")])
def test_two_processes_share_what_they_are_said_to_share_and_so_do_their_resident_sets(overrides):
    config = load_config([*MICRO, *overrides, "parallel.world=2"])
    expected, measured = memory(config, on_accelerator=False), measure(*MICRO, *overrides, world=2, resident=True)
    assert_as_measured(expected, measured)
    assert resident(expected) == pytest.approx(measured["resident_peak"], rel=RESIDENT)


@pytest.mark.multi
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.precision=bf16", "parallel.zero_stage=2"),
        (FP32, "train.ema=power"),
        (FP32, "model.block=dit", "parallel.expert_parallel=2"),
        (FP32, "model.block=dit", "parallel.zero_stage=3"),
        (FP32, "model.block=mmdit", "routing.text_experts=4", "parallel.expert_parallel=2"),
        (FP32, "model.block=mmdit", "routing.text_experts=4", "parallel.zero_stage=3"),
    ],
)
def test_two_processes_share_what_they_are_said_to_share(overrides):
    config = load_config([*MICRO, *overrides, "parallel.world=2"])
    assert_as_measured(memory(config, on_accelerator=False), measure(*MICRO, *overrides, world=2))


@pytest.mark.multi
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.precision=bf16", "parallel.zero_stage=1"),
        ("train.precision=bf16", "parallel.zero_stage=2"),
        (FP32, "parallel.zero_stage=2", "train.accumulation=2"),
        ("train.precision=bf16", "parallel.zero_stage=3"),
    ],
)
def test_an_accelerator_reduces_gradients_in_a_bucket_that_it_always_has(overrides, monkeypatch):
    """Live tensors do not ask where they live, but for what is done otherwise on processors (the fast path there).

    The bucket is small, so that it is filled more than once.
    """
    monkeypatch.setattr("experiments.config.memory.BUCKET_ELEMENTS", BUCKET)
    overrides = (*SMALL_BATCH, *overrides, "train.implementation=reference")
    expected = memory(load_config([*overrides, "parallel.world=2"]), on_accelerator=True)
    assert_as_measured(expected, measure(*overrides, world=2, bucket=BUCKET))


@pytest.mark.parametrize("block", ["pixart", "mmdit"])
def test_latents_and_text_features_take_what_was_computed(block, latent_set):
    data = ("data.name=latents", f"data.path={latent_set}", "model.patch_size=2", "train.batch_images=16")
    data = (*data, f"model.block={block}")
    expected = memory(load_config(["model=nano", FP32, *data]), on_accelerator=False)
    measured = measure("model=nano", FP32, *data)
    assert expected.activations == pytest.approx(measured["activations"], rel=0.05)
    assert expected.persistent + expected.batch == pytest.approx(measured["persistent"], rel=0.05)


def parts(*overrides, on_accelerator=False):
    return memory(load_config(overrides), on_accelerator)


def test_what_is_always_held_is_four_copies_in_fp32_and_four_and_a_half_in_bf16():
    four_bytes = 4 * budget(load_config(["model=micro"])).params_total
    assert parts("model=micro", FP32).persistent == 4 * four_bytes
    assert parts("model=micro", FP32, "parallel.zero_stage=1").persistent == 5 * four_bytes
    assert parts("model=micro", "train.precision=bf16").persistent == 4.5 * four_bytes


def test_two_power_averages_are_one_copy_more_and_are_saved_too():
    one, two = parts("model=micro", FP32), parts("model=micro", FP32, "train.ema=power")
    assert two.moving_average == 2 * one.moving_average
    assert two.persistent - one.persistent == two.checkpoint - one.checkpoint == one.moving_average


def test_auto_is_the_larger_precision_on_a_cpu_and_bf16_on_an_accelerator():
    assert parts("model=micro") == parts("model=micro", FP32)
    bf16 = parts("model=micro", "train.precision=bf16", on_accelerator=True)
    assert parts("model=micro", on_accelerator=True) == bf16


def test_processes_share_the_states_and_not_the_parameters():
    sharded = ("model=micro", FP32, "parallel.zero_stage=1")
    alone, four = parts(*sharded), parts(*sharded, "parallel.world=4")
    assert four.parameters == alone.parameters
    for part in ("master_weights", "moving_average", "optimizer_state", "activations"):
        assert getattr(four, part) == pytest.approx(getattr(alone, part) / 4, abs=16), part
    assert four.optimizer_scratch < alone.optimizer_scratch / 3  # whole gradients of the tensors that a share touches


def test_zero_2_keeps_the_gradients_that_its_share_touches_on_an_accelerator():
    world = ("model=L", "train.batch_images=4", "parallel.world=4")
    one, two = (parts(*world, f"parallel.zero_stage={stage}", on_accelerator=True) for stage in (1, 2))
    assert one.gradients == one.parameters
    largest = 2 * 8 * 1024 * 4096  # the experts of a layer are one tensor
    assert two.gradients == largest
    assert one.gradients / 4 <= two.gradient_partition <= one.gradients / 4 + 2 * largest
    assert two.peak < one.peak


def test_zero_3_shares_the_weights_too():
    world = ("model=L", "train.batch_images=4", "parallel.world=4")
    two, three = (parts(*world, f"parallel.zero_stage={stage}", on_accelerator=True) for stage in (2, 3))
    assert three.parameters == pytest.approx(two.parameters / 4, abs=16)
    assert three.gathered < two.parameters
    assert three.persistent - three.reduction_bucket < two.persistent
    assert three.master_weights == pytest.approx(2 * three.parameters, abs=16)


def test_zero_0_shares_nothing_and_auto_is_then_fp32():
    world = ("model=L", "train.batch_images=4", "parallel.world=4", "parallel.zero_stage=0")
    whole = parts(*world, on_accelerator=True)
    total = budget(load_config(["model=L"])).params_total
    assert whole.persistent == 4 * 4 * total
    assert whole.master_weights == 0


def test_activation_checkpointing_keeps_the_input_of_a_block_and_one_block_at_a_time():
    plain, again = parts("model=L"), parts("model=L", "parallel.activation_checkpointing=True")
    config = load_config(["model=L"])
    kept = 32 * config.model.num_layers * 4 * config.num_train_tokens * config.model.width
    assert kept < again.activations < 1.2 * kept
    assert again.activations < plain.activations / 5
    assert again.activations + again.recomputed < plain.activations
    assert plain.recomputed == 0


def test_large_experts_are_optimized_in_groups():
    config = load_config(["model=M", "routing.num_experts=64", "parallel.world=512", "parallel.expert_parallel=64",
                          "train.batch_images=512"])  # fmt: skip
    of = shares(config)
    elements = 4 * 3072 * 3072 // (512 // 64)  # of one of the 38 tensors of experts in a partition
    assert (of.largest_group, of.last) == (4 * elements, 2 * elements)  # four tensors to a group, two in the last
    assert of.largest_group < EXPERT_GROUP_ELEMENTS
    assert of.kept > of.partition


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


def test_a_process_saves_its_share_and_a_cpu_holds_it_beside_training():
    total = budget(load_config(["model=micro"])).params_total
    assert parts("model=micro", on_accelerator=True).checkpoint == 16 * total
    assert parts("model=micro", "optim.name=rmsprop", "optim.momentum=0").checkpoint == 12 * total
    for stage in range(4):
        four = parts("model=micro", "parallel.world=4", f"parallel.zero_stage={stage}")
        assert four.checkpoint == pytest.approx(4 * total, abs=16)
    one = parts("model=micro")
    assert resident(one) == PROCESS_BYTES + one.validation_set + round(HOST_SLACK * one.tensors_peak)


def test_the_client_of_wandb_counts_where_it_is_used():
    with_it, without = parts("model=micro", "wandb.mode=offline"), parts("model=micro", "wandb.mode=disabled")
    assert with_it.peak - without.peak == MIRROR_BYTES
    assert with_it.tensors_peak == without.tensors_peak


def test_expert_parallelism_has_slots_on_their_way():
    spread = ("model=micro", FP32, "parallel.world=4", "parallel.expert_parallel=4")
    config = load_config(spread)
    assert parts(*spread).all_to_all == 4 * 8 * 2 * config.num_train_tokens * config.model.width * 4
    assert parts("model=micro", FP32, "parallel.world=4").all_to_all == 0


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("routing=expert_choice routing.capacity_factor=4", "routing=expert_choice"),
        ("routing=shared_expert", "routing=shared_expert routing.shared_factor=1"),
        ("routing=switch", "routing=switch train.mask_ratio=0.5"),
        ("model.patch_size=2", "model.patch_size=4"),
    ],
)
def test_activations_follow_the_tokens_and_slots(more, less):
    assert parts("model=micro", *more.split()).activations > parts("model=micro", *less.split()).activations


def test_without_a_limit_there_is_a_slot_for_every_choice_and_no_other():
    dropless, limited = "routing=shared_expert", "routing=shared_expert routing.capacity_factor=2"
    exactly, padded = (parts("model=micro", *arm.split()).activations for arm in (dropless, limited))
    assert exactly == padded


def test_a_moment_is_no_more_than_its_parts_and_the_peak_is_the_fullest():
    whole = parts("model=L", "parallel.world=4", "parallel.zero_stage=2", "train.accumulation=2", on_accelerator=True)
    sums = {name: sum(kinds.values()) for name, kinds in whole.moments().items()}
    assert set(sums) == {"backward pass", "gradient reduction", "first reduction", "optimizer step"}
    assert whole.at_peak()[0] == max(sums, key=sums.get)
    assert whole.tensors_peak == max(sums.values()) == max(whole.backward_peak, whole.step_peak)


def test_the_parts_add_up_by_name():
    whole = parts("model=micro")
    names = ("parameters", "master_weights", "moving_average", "optimizer_state")
    assert sum(getattr(whole, name) for name in names) == whole.persistent
