"""Training with any objective: masks, and the velocity error beside the loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.config.objectives import loss_is_velocity_error
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream, validation_set
from experiments.flow.objective_contract import interpolate
from experiments.models.dit import DiT
from experiments.models.embed import patchify
from experiments.records.run_folder import RunDir
from experiments.training.objective import forward_losses
from experiments.training.validation import Validator, measure_batches
from tests.flow_cases import CASES, LEARNED, named, objective

Tiny = Callable[..., RunConfig]
every_case = pytest.mark.parametrize("case", [*CASES, LEARNED], ids=named)


def settings(case: dict[str, object]) -> list[str]:
    return [f"flow.{key}={value}" for key, value in case.items()]


def awake(config: RunConfig) -> DiT:
    torch.manual_seed(0)
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@every_case
def test_the_losses_of_kept_tokens_are_those_of_a_set_with_these_tokens_alone(
    case: dict[str, object], tiny: Tiny
) -> None:
    config = tiny("routing=dense", "train.mask_ratio=0.5", *settings(case))
    batch, model = TrainStream(config).batch(0), awake(config)
    losses, output = forward_losses(model, batch, config)
    assert batch.keep_BK is not None
    kept = [
        torch.stack([tokens[places] for tokens, places in zip(patchify(images, 4), batch.keep_BK, strict=True)])
        for images in (batch.pixels_BCHW, batch.noise_BCHW)
    ]
    again = objective(case).losses(output.velocity_BKP, *kept, batch.time_B)
    assert output.velocity_BKP.shape[1] == config.num_train_tokens == config.num_tokens // 2
    assert torch.equal(losses.loss_B, again.loss_B)
    assert torch.equal(losses.velocity_error_B, again.velocity_error_B)


@every_case
def test_the_recorded_velocity_error_is_that_of_the_field_that_samplers_integrate(
    case: dict[str, object], tiny: Tiny, build: Callable[[RunConfig], Any]
) -> None:
    config = tiny("routing=dense", "eval.images=16", *settings(case))
    engine, of = build(config), objective(case)
    engine.model.load_state_dict(awake(config).state_dict())
    errors, times = [], []
    with torch.no_grad():
        for batch in validation_set(config):
            x_BCHW = interpolate(batch.pixels_BCHW, batch.noise_BCHW, batch.time_B)
            output = engine.model.eval()(*of.network_input(x_BCHW, batch.time_B), batch.caption)
            found = of.predicted(engine.model.to_image(output.velocity_BKP), x_BCHW, batch.time_B)
            wrong = found.velocity_BCHW - (batch.noise_BCHW - batch.pixels_BCHW)
            errors += wrong.square().mean(dim=(1, 2, 3)).tolist()
            times += batch.time_B.tolist()
    rows = {row.metric: row.value for row in Validator(config).measure(engine, 0, "raw")[0]}
    assert rows["velocity_error"] == pytest.approx(sum(errors) / 16, rel=1e-3)
    if loss_is_velocity_error(config.flow.objective, config.flow.prediction):
        assert rows["velocity_error"] == rows["val_loss"]
        assert not [name for name in rows if name.startswith("velocity_error_")]
        return
    for tenth in range(10):
        inside = [error for error, t in zip(errors, times, strict=True) if tenth <= 10 * t < tenth + 1]
        assert rows.get(f"velocity_error_t{tenth}") == (
            pytest.approx(sum(inside) / len(inside), rel=1e-3) if inside else None
        )
    assert "velocity_error_same_t" in rows


def test_all_objectives_are_validated_at_the_same_noise_levels(tiny: Tiny) -> None:
    first = validation_set(tiny())
    for case in CASES:
        for one, other in zip(first, validation_set(tiny(*settings(case))), strict=True):
            assert torch.equal(one.time_B, other.time_B)
            assert torch.equal(one.noise_BCHW, other.noise_BCHW)


@every_case
def test_a_short_run_lowers_the_velocity_error(
    case: dict[str, object], rows_of: Callable[..., Any], tiny: Tiny, tmp_path: Path
) -> None:
    words = ["routing=dense", "train.images=384", "optim.learning_rate=3e-3", "eval.images=64", *settings(case)]
    config = tiny(*words, "eval.every_images=384")
    measured = measure_batches(DiT(config), validation_set(config), torch.device("cpu"), config)
    untrained = [error for _, of_batch in measured.losses for _, error, _ in of_batch]
    rows_of(*words, "eval.every_images=384")
    rows = [json.loads(line) for line in RunDir(tmp_path / "run").evals.read_text().splitlines()]
    error = next(row["value"] for row in rows if (row["metric"], row["weights"]) == ("velocity_error", "raw"))
    assert error < 0.9 * sum(untrained) / len(untrained)
