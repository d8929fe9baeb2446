"""Gradients measured all at once are as finite and as long as DeepSpeed finds them one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.config.overrides import load_config
from experiments.data.loader import TrainStream
from experiments.training.clipping import _group_norm, _has_overflow, measure_gradients_at_once
from experiments.training.engine import build_engine, process_group
from experiments.training.objective import forward_loss, to_device

STAGES = pytest.mark.parametrize("stage", [1, 2])
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def gradients_of_a_batch(stage: int, precision: Any) -> Any:
    """DeepSpeed's optimizer, with the gradients of one batch reduced."""
    config = load_config(["model=nano", "train.batch_images=4", f"parallel.zero_stage={stage}"])
    engine = build_engine(config, precision)
    batch = to_device(next(TrainStream(config).iterate(0)), engine.device)
    loss_B, output = forward_loss(engine.deepspeed, batch, config)
    engine.deepspeed.backward(loss_B.mean() + output.auxiliary_loss)
    return engine


@STAGES
@PRECISIONS
def test_the_norm_is_deepspeeds(stage: int, precision: Any, tmp_path: Path) -> None:
    with process_group(tmp_path / "log.txt"):
        optimizer = gradients_of_a_batch(stage, precision).deepspeed.optimizer
        gradients, params = optimizer.averaged_gradients[0], optimizer.params_in_partition[0]
        expected = type(optimizer).get_grad_norm_direct(optimizer, gradients, params)
        assert expected > 0
        torch.testing.assert_close(_group_norm(optimizer, gradients, params), expected, rtol=1e-5, atol=0)


@STAGES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(stage: int, value: float, tmp_path: Path) -> None:
    with process_group(tmp_path / "log.txt"):
        optimizer = gradients_of_a_batch(stage, "fp32").deepspeed.optimizer
        assert not _has_overflow(optimizer)
        optimizer.averaged_gradients[0][-2].view(-1)[-1] = value
        assert bool(_has_overflow(optimizer)) is bool(type(optimizer).has_overflow_partitioned_grads_serial(optimizer))
        gradients, params = optimizer.averaged_gradients[0], optimizer.params_in_partition[0]
        assert _has_overflow(optimizer).shape == (1,)
        assert _group_norm(optimizer, gradients, params) == -1


def test_a_step_takes_the_norm_from_there(tmp_path: Path) -> None:
    norms = []
    for at_once in (False, True):
        with process_group(tmp_path / f"{at_once}.txt"):
            engine = gradients_of_a_batch(1, "bf16")
            if at_once:
                measure_gradients_at_once(engine.deepspeed.optimizer)
            engine.deepspeed.step()
            norms.append(float(engine.deepspeed.get_global_grad_norm()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
