"""Validation is a mean over fixed images, whoever measures them and in whatever batches."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.budget import compute_varies
from experiments.config.routers import ROUTERS, routed_names
from experiments.config.schema import RunConfig
from experiments.data.loader import same_time_batches, validation_set
from experiments.errors import RunFailedError
from experiments.models.dit import DiT
from experiments.records.run_lock import VALIDATION_METRIC
from experiments.training.engine import Engine
from experiments.training.objective import forward_loss, to_device
from experiments.training.validation import Validator, measure_batches

Build = Callable[[RunConfig], Engine]
Tiny = Callable[..., RunConfig]
CPU = torch.device("cpu")
SIXTEEN = ("eval.images=16", "eval.batch_images=4")


def values(engine: Engine, config: RunConfig) -> dict[str, float]:
    """What validation measures, by the names that resuming and branching know as those of training."""
    found = {row.metric: row.value for row in Validator(config).measure(engine, 0, "raw")[0]}
    assert [name for name in found if not VALIDATION_METRIC.fullmatch(name)] == []
    return found


def awake(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("arm", [f"routing={name}" for name in ROUTERS])
def test_the_loss_is_the_mean_over_all_images_and_over_those_of_each_tenth_of_t(
    arm: str, build: Build, tiny: Tiny
) -> None:
    config = tiny(arm, *SIXTEEN)
    engine = build(config)
    awake(engine.model).eval()
    pairs = []
    with torch.no_grad():
        for batch in validation_set(config):
            loss_B, _ = forward_loss(engine.model, to_device(batch, engine.device), config)
            pairs += list(zip(loss_B.tolist(), batch.time_B.tolist(), strict=True))
    found = values(engine, config)
    assert found["val_loss"] == pytest.approx(sum(loss for loss, _ in pairs) / 16)
    for tenth in range(10):
        inside = [loss for loss, t in pairs if tenth <= 10 * t < tenth + 1]
        if inside:
            assert found[f"val_loss_t{tenth}"] == pytest.approx(sum(inside) / len(inside))
        else:
            assert f"val_loss_t{tenth}" not in found


@pytest.mark.parametrize("arm", ["routing=dense", "routing=switch"])
def test_losses_at_one_timestep_are_told_apart_by_tenths_of_t(arm: str, build: Build, tiny: Tiny) -> None:
    config = tiny(arm, *SIXTEEN)
    engine = build(config)
    awake(engine.model).eval()
    by_tenth: dict[int, list[float]] = {}
    with torch.no_grad():
        for batch in same_time_batches(config):
            loss_B, _ = forward_loss(engine.model, to_device(batch, engine.device), config)
            by_tenth.setdefault(int(10 * batch.time_B[0]), []).extend(loss_B.tolist())
    found = {name: value for name, value in values(engine, config).items() if name.startswith("val_loss_same_t_t")}
    assert len(by_tenth) > 1
    assert found == {
        f"val_loss_same_t_t{tenth}": pytest.approx(sum(losses) / len(losses)) for tenth, losses in by_tenth.items()
    }


def test_the_size_of_batches_does_not_matter_where_images_are_routed_alone(build: Build, tiny: Tiny) -> None:
    config = tiny("routing=expert_choice", "eval.images=12", "eval.batch_images=4")
    other = tiny("routing=expert_choice", "eval.images=12", "eval.batch_images=5")
    engine = build(config)
    awake(engine.model)
    one, two = (values(engine, c) for c in (config, other))
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-5)
    assert one["dropped_share"] == pytest.approx(two["dropped_share"], rel=1e-5)


def test_processes_share_the_batches_and_miss_none(tiny: Tiny) -> None:
    config = tiny("eval.images=20", "eval.batch_images=4")
    model, batches = DiT(config), validation_set(config)
    alone = measure_batches(model, batches, CPU, config)
    shares = [measure_batches(model, batches, CPU, config, rank, world=3) for rank in range(3)]
    assert sorted(batch for share in shares for batch in share.losses) == alone.losses
    assert [len(share.losses) for share in shares] == [2, 2, 1]


def test_both_ways_of_batching_t_see_the_same_images_and_noise(tiny: Tiny) -> None:
    config = tiny(*SIXTEEN)
    for mixed, same in zip(validation_set(config), same_time_batches(config), strict=True):
        assert torch.equal(mixed.index_B, same.index_B)
        assert torch.equal(mixed.noise_BCHW, same.noise_BCHW)
        assert same.time_B.unique().numel() == 1 < mixed.time_B.unique().numel()


def test_routed_layers_are_described_under_both_conditions_and_dense_ones_are_not(build: Build, tiny: Tiny) -> None:
    config = tiny("routing=token_choice", "model.num_layers=4", *SIXTEEN)
    evals, routing = Validator(config).measure(build(config), 64, "raw")
    assert {(row.layer, row.condition) for row in routing} == {
        (layer, condition) for layer in (1, 3) for condition in ("mixed_t", "same_t")
    }
    for condition, metric in (("mixed_t", "dropped_share"), ("same_t", "dropped_share_same_t")):
        layers = [row.dropped_share for row in routing if row.condition == condition]
        assert next(row.value for row in evals if row.metric == metric) == pytest.approx(sum(layers) / 2)
    dense = tiny("routing=dense", *SIXTEEN)
    evals, routing = Validator(dense).measure(build(dense), 64, "raw")
    assert routing == []
    assert not [row for row in evals if row.metric.startswith("dropped_share")]


def test_outside_training_the_evaluation_capacity_counts(build: Build, tiny: Tiny) -> None:
    config = tiny("routing=token_choice", "routing.capacity_factor=1", *SIXTEEN)
    roomy = tiny("routing=token_choice", "routing.capacity_factor=1", "routing.eval_capacity_factor=8", *SIXTEEN)
    assert values(build(config), config)["dropped_share"] > 0
    assert values(build(roomy), roomy)["dropped_share"] == 0


EMPTY_SLOTS_LEFT_OUT = "routing=promoe routing.capacity_factor=2 routing.group_images=1"


@pytest.mark.parametrize("arm", [*(f"routing={router}" for router in routed_names()), EMPTY_SLOTS_LEFT_OUT])
def test_executed_flops_of_evaluation_are_those_that_torch_counts(
    arm: str, build: Build, tiny: Tiny, advance: Callable[..., list[float]]
) -> None:
    config = tiny(*arm.split(), *SIXTEEN)
    assert compute_varies(config, training=False) or arm != EMPTY_SLOTS_LEFT_OUT
    if not compute_varies(config, training=False):
        assert "executed_flops_per_image" not in values(build(config), config)
        return
    engine = build(config)
    advance(engine, config, start=0, num_steps=2)
    found = values(engine, config)
    assert ("val_loss_training_decision" in found) == (config.routing.eval_decision != "same")
    for key, batches in (("", validation_set(config)), ("_same_t", same_time_batches(config))):
        engine.model.eval()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            for batch in batches:
                forward_loss(engine.model, to_device(batch, engine.device), config)
        assert found[f"executed_flops_per_image{key}"] == pytest.approx(counter.get_total_flops() / 16)


def test_measuring_changes_nothing(build: Build, tiny: Tiny) -> None:
    engine, config = build(tiny(*SIXTEEN)), tiny(*SIXTEEN)
    engine.model.train()
    before = json.dumps({name: p.tolist() for name, p in engine.model.named_parameters()})
    assert values(engine, config) == values(engine, config)
    assert engine.model.training
    assert json.dumps({name: p.tolist() for name, p in engine.model.named_parameters()}) == before


@pytest.mark.parametrize("settings", [(), ("routing.group_images=2", "eval.images=5", "eval.batch_images=4")])
def test_a_validation_loss_that_is_not_finite_is_a_failed_run_that_names_the_layer(
    settings: tuple[str, ...], build: Build, tiny: Tiny
) -> None:
    """The second case has a last batch of one image, which makes no routing group in training."""
    config = tiny("routing=expert_choice", *settings)
    engine = build(config)
    with torch.no_grad():
        engine.model.head.weight.fill_(torch.finfo(torch.float32).max)
    line = (
        r"Not finite after 640 images: the output of head \(validation loss of the ema weights\)\. Lower optim\.learn"
    )
    with pytest.raises(RunFailedError, match=line):
        Validator(config).measure(engine, 640, "ema")
