import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS
from experiments.evaluation.inference import inference_time
from experiments.evaluation.inference.inference_time import (
    FLOPS,
    PEAK_MEMORY,
    SECONDS,
    measure_inference,
    overhead_over_dense,
)
from experiments.evaluation.sampling.generate import SamplerSettings, image_noise, sample, validation_captions
from experiments.evaluation.sampling.load_run import LoadedRun, current_device
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiT
from experiments.records.run_folder import RunDir
from experiments.routing.state import RunningThreshold
from experiments.training.description import describe_run

BATCH = 4


def loaded(*overrides: str) -> LoadedRun:
    config = load_config(["model=nano", "model.num_layers=2", "eval.images=8", "eval.batch_images=8", *overrides])
    record = describe_run(config, "fp32", budget(config), ["ecdit"])
    model = DiT(config).to(current_device()).eval()
    return LoadedRun(RunDir(Path("nowhere")), record, config, model, 640, "ema", "fp32")


def settings(**changes) -> SamplerSettings:
    return dataclasses.replace(SamplerSettings(2, Guidance(2.0)), **changes)


def measured(run: LoadedRun, how: SamplerSettings, rounds: int = 1) -> dict[str, object]:
    (rows,) = measure_inference([run], [how], BATCH, rounds)
    return {row.metric: row for row in rows}


@pytest.mark.parametrize(
    "arm",
    [
        *(f"routing={router}" for router in ROUTERS),
        "routing=promoe routing.top_k=2",
        "routing=promoe routing.capacity_factor=2 routing.group_images=1",
    ],
)
def test_flops_are_those_that_torch_counts(arm):
    """Attention as plain matmuls, because torch counts none of its fused kernel on a CPU.

    Thresholds of 0 let more pairs through than are planned, and the unconditional branch has one expert for a token.
    """
    run, how = loaded(*arm.split()), settings()
    for module in run.model.modules():
        if isinstance(module, RunningThreshold):
            module.update(torch.zeros_like(module.value_K))
    captions = validation_captions(run.config, BATCH)
    noise = image_noise(run.config, range(BATCH), run.config.data.seed).to(current_device())
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        sample(run.model, captions, noise, how)
    assert measured(run, how)[FLOPS].value == pytest.approx(counter.get_total_flops() / BATCH, rel=0.02)


@pytest.mark.parametrize(
    ("how", "passes"),
    [
        (settings(guidance=Guidance(1.0)), 2),
        (settings(), 4),
        (settings(num_steps=4, guidance=Guidance(2.0, 0.6, 1.0)), 4 + 2),
        (settings(sampler="heun"), 8),
    ],
)
def test_every_pass_of_an_image_through_the_model_counts(how, passes):
    run = loaded("routing=dense")
    assert measured(run, how)[FLOPS].value == passes * run.record.flops_per_image


def test_matmul_speed_memory_holds_the_weights_and_grows_with_what_is_alive():
    run = loaded("routing=dense")
    weights_gib = sum(p.numel() * p.element_size() for p in run.model.parameters()) / 2**30
    guided, plain = (measured(run, settings(guidance=Guidance(s)))[PEAK_MEMORY].value for s in (2.0, 1.0))
    assert weights_gib < plain < guided < 40 * weights_gib


def test_the_row_of_time_says_how_it_was_measured():
    row = measured(loaded("routing=expert_choice"), settings(), rounds=3)[SECONDS]
    assert row.num_samples == 3 * BATCH
    assert row.settings["fastest_seconds"] <= row.value <= row.settings["slowest_seconds"]
    assert row.settings | {
        "batch_images": BATCH, "steps": 2, "guidance": 2.0, "guidance_start": 0.0, "guidance_stop": 1.0,
        "sampler": "euler", "precision": "fp32", "rounds": 3, "num_threads": torch.get_num_threads(),
    } == row.settings  # fmt: skip
    assert (row.weights, row.images_seen) == ("ema", 640)


def test_the_clock_does_not_run_while_captions_and_noise_are_made(monkeypatch):
    """Rendering the validation images and drawing noise take 100 seconds each here, and sampling 1 second an image."""
    seconds = 0.0

    def taking(duration, function):
        def slow(*args, **kwargs):
            nonlocal seconds
            seconds += duration
            return function(*args, **kwargs)

        return slow

    for name in ("validation_captions", "empty_of", "image_noise"):
        monkeypatch.setattr(inference_time, name, taking(100, getattr(inference_time, name)))
    monkeypatch.setattr(inference_time, "sample", taking(BATCH, inference_time.sample))
    monkeypatch.setattr(inference_time, "time", SimpleNamespace(perf_counter=lambda: seconds))
    row = measured(loaded("routing=dense"), settings(), rounds=2)[SECONDS]
    assert (row.value, row.settings["slowest_seconds"]) == (1.0, 1.0)


def test_the_row_says_when_and_what_guidance_guides():
    rows = measured(loaded("routing=dense"), settings(guidance=Guidance(2.0, 0.3, 0.7, 2)))
    guided = {"guidance": 2.0, "guidance_start": 0.3, "guidance_stop": 0.7, "guidance_channels": 2}
    assert all(row.settings | guided == row.settings for row in rows.values())
    assert "guidance_channels" not in measured(loaded("routing=dense"), settings())[SECONDS].settings


def test_overhead_is_over_the_dense_model_of_the_same_backbone():
    dense, wide = loaded("routing=dense"), loaded("routing=dense", "model.ffn_factor=6")
    sparse = loaded("routing=expert_choice")
    nothing, other, found = overhead_over_dense(
        [dense, wide, sparse], [settings()] * 3, [0.1, 0.2, 0.125], [4e6, 6e6, 5e6]
    )
    assert nothing is None
    assert other is None
    assert found.seconds == pytest.approx(0.25)
    assert found.params_active == sparse.record.params_active / dense.record.params_active - 1
    assert found.flops == pytest.approx(0.25)
    assert overhead_over_dense([wide, sparse], [settings()] * 2, [0.1, 0.2], [6e6, 5e6]) == [None, None]


@pytest.mark.parametrize(
    ("dense", "steps", "precision"),
    [
        ("data.image_size=16", 2, "fp32"),
        ("flow.time_shift=3", 2, "fp32"),
        ("data.seed=0", 4, "fp32"),
        ("data.seed=0", 2, "bf16"),
    ],
)
def test_a_dense_run_that_samples_other_images_or_otherwise_is_no_baseline(dense, steps, precision):
    """Four times the tokens, or twice the steps, are no overhead of experts."""
    other = dataclasses.replace(loaded("routing=dense", dense), precision=precision)
    runs, hows = [other, loaded("routing=expert_choice")], [settings(num_steps=steps), settings()]
    assert overhead_over_dense(runs, hows, [0.1, 0.2], [4e6, 5e6]) == [None, None]


def test_a_dense_run_on_other_images_of_the_same_form_is_a_baseline():
    runs = [loaded("routing=dense", "data.seed=3", "seed=1"), loaded("routing=expert_choice")]
    assert overhead_over_dense(runs, [settings()] * 2, [0.1, 0.2], [6e6, 5e6])[1].seconds == pytest.approx(1.0)
