"""A run's record from real settings, and rows to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config.identity import config_id, run_name
from experiments.config.overrides import load_config
from experiments.records.record_types import EvalRow, RoutingRow, RunRecord, StepRow
from experiments.records.run_folder import RunDir

MakeRecord = Callable[..., RunRecord]


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def make_record() -> MakeRecord:
    def make(*overrides: str) -> RunRecord:
        config = load_config(["model=nano", "routing=expert_choice", "wandb.mode=disabled", *overrides])
        return RunRecord(
            config=config.model_dump(mode="json"),
            config_id=config_id(config),
            name=run_name(config),
            sweep="quickstart",
            created_at="2025-01-01T00:00:00.000000+00:00",
            command=["ecdit", "train", *overrides],
            versions={"python": "3.11"},
            host="laptop",
            device="cpu: Xeon, 2 cores",
            num_threads=2,
            precision="fp32",
            world=1,
            params_total=10,
            params_active=5,
            params_by_part={"experts": 10},
            flops_per_image=100,
            train_flops_per_image=300,
        )

    return make


@pytest.fixture
def make_step() -> Callable[[int], StepRow]:
    def make(images_seen: int) -> StepRow:
        return StepRow(
            images_seen=images_seen,
            flops=300.0 * images_seen,
            seconds=images_seen / 250,
            loss=1 / (1 + images_seen),
            learning_rate=1e-3,
            grad_norm=0.5,
            images_per_second=250.0,
        )

    return make


@pytest.fixture
def make_eval() -> Callable[[int], EvalRow]:
    def make(images_seen: int) -> EvalRow:
        return EvalRow(images_seen=images_seen, metric="val_loss", value=0.25, num_samples=8, seed=0, weights="raw")

    return make


@pytest.fixture
def make_routing() -> Callable[[int], RoutingRow]:
    def make(images_seen: int) -> RoutingRow:
        return RoutingRow(
            images_seen=images_seen,
            layer=1,
            condition="mixed_t",
            load=[0.25, 0.75],
            entropy=0.5,
            load_entropy=0.8,
            dropped_share=0.125,
            experts_per_token=[0.125, 0.75, 0.125],
        )

    return make
