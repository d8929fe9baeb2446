"""The loop, whole and in one process: what a run writes, and which settings must not change its losses."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.config.budget import budget, compute_varies, executed_flops_per_image
from experiments.config.routers import ROUTERS, routed_names
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.errors import RunFailedError
from experiments.records.run_folder import RunDir
from experiments.training.checkpoint import load_newest
from experiments.training.checkpoint_list import complete_checkpoints
from experiments.training.loop import _crossed, train
from experiments.training.objective import micro_batches_of
from experiments.training.reporter import Reporter

Tiny = Callable[..., RunConfig]
RowsOf = Callable[..., list[dict[str, Any]]]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.mark.parametrize(
    ("before", "after", "crossed"),
    [(0, 8, False), (0, 10, True), (8, 16, True), (10, 19, False), (10, 20, True), (12, 45, True)],
)
def test_a_cadence_is_met_once_its_multiple_is_reached(before: int, after: int, crossed: bool) -> None:
    assert _crossed(before, after, every=10) is crossed


def test_micro_batches_are_the_batch_in_pieces(tiny: Tiny) -> None:
    batch = TrainStream(tiny("train.mask_ratio=0.5")).batch(0)
    pieces = list(micro_batches_of(batch, 4))
    given = {name: value for name, value in vars(batch).items() if value is not None}  # latents have more
    assert {"pixels_BCHW", "keep_BK", "caption_BL"} <= set(given)
    for name, value in given.items():
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), value), name


@pytest.mark.parametrize(("accumulation", "same"), [(1, True), (2, False)])
def test_the_images_that_all_processes_take_at_a_time_follow_their_number_with_accumulation(
    accumulation: int, same: bool, tiny: Tiny
) -> None:
    """This is why config ids count the processes where tokens of all of them compete (`experiments/settings_id.py`)."""

    def passes(world: int) -> list[set[int]]:
        config = tiny(f"train.accumulation={accumulation}", f"parallel.world={world}")
        batches = [TrainStream(config, rank, world).batch(0) for rank in range(world)]
        shares = [list(micro_batches_of(batch, accumulation)) for batch in batches]
        return [{int(index) for part in parts for index in part.index_B} for parts in zip(*shares, strict=True)]

    assert set.union(*passes(1)) == set.union(*passes(2))
    assert (passes(1) == passes(2)) is same


@pytest.mark.parametrize("arm", ["routing=dense", "routing=expert_choice"])
def test_accumulation_changes_no_loss(arm: str, rows_of: RowsOf) -> None:
    whole, pieces = rows_of(arm), rows_of(arm, "train.accumulation=2", name="pieces")
    assert losses(pieces) == pytest.approx(losses(whole), abs=1e-5)
    assert [row["grad_norm"] for row in pieces] == pytest.approx([row["grad_norm"] for row in whole], rel=1e-3)


@pytest.fixture(scope="module")
def made() -> dict[str, list[dict[str, Any]]]:
    """Holds the rows of runs that learn, by their settings, which no test changes."""
    return {}


@pytest.fixture
def learned(made: dict[str, list[dict[str, Any]]], rows_of: RowsOf) -> Callable[[str], list[dict[str, Any]]]:
    """Trains a run that is long enough to learn, once for each choice of settings; returns the rows of its steps."""

    def get(settings: str) -> list[dict[str, Any]]:
        if settings not in made:
            fast = ("train.images=256", "optim.learning_rate=1e-2", "seed=1")
            made[settings] = rows_of(*fast, *settings.split(), name="learned")
        return made[settings]

    return get


@pytest.mark.parametrize("router", routed_names())
def test_executed_flops_are_counted_where_they_vary_and_absent_elsewhere(
    router: str, learned: Callable[[str], list[dict[str, Any]]], tiny: Tiny
) -> None:
    config = tiny(f"routing={router}")
    rows = learned(f"routing={router}")
    if not compute_varies(config, training=True):
        assert all("executed_flops" not in row for row in rows)
        return
    spent = [row["executed_flops"] for row in rows]
    assert all(before < after for before, after in pairwise(spent))
    assert spent[-1] == pytest.approx(rows[-1]["flops"], rel=0.2)
    if config.routing.unconditional_expert and config.routing.top_k == 1:
        assert spent == pytest.approx([row["flops"] for row in rows])  # one expert in place of another


def test_a_capacity_that_falls_is_counted_from_all_experts_on(rows_of: RowsOf, tiny: Tiny) -> None:
    arm = ["routing=expert_choice", "routing.capacity_warmup_images=32"]
    config, batch = tiny(*arm), 8
    expected, layers = 0.0, len(config.sparse_layer_indices)
    for step, row in enumerate(rows_of(*arm)):
        factor = 2 + 6 * max(0.0, 1 - step * batch / 32)
        slots = layers * 8 * int(config.num_train_tokens * factor / 8)
        expected += batch * executed_flops_per_image(config, slots, training=True)
        assert row["executed_flops"] == pytest.approx(expected)


def test_zero_2_gives_the_losses_of_zero_1(rows_of: RowsOf) -> None:
    assert losses(rows_of("parallel.zero_stage=2")) == losses(rows_of("parallel.zero_stage=1", name="one"))


@pytest.mark.parametrize(
    "settings",
    [
        *(f"routing={name}" for name in ROUTERS),
        "routing=switch train.mask_ratio=0.5",
        "routing=expert_choice routing.group_images=8 train.mask_ratio=0.5",
        "optim=rmsprop optim.learning_rate=1e-4",
        "train.precision=bf16",
    ],
)
def test_a_tiny_run_learns(settings: str, learned: Callable[[str], list[dict[str, Any]]]) -> None:
    found = losses(learned(settings))
    assert sum(found[-4:]) / 4 < sum(found[:4]) / 4 - 0.1


def test_bf16_is_recorded_and_close_to_fp32(rows_of: RowsOf, tmp_path: Path) -> None:
    assert losses(rows_of("train.precision=bf16")) == pytest.approx(losses(rows_of(name="fp32")), rel=0.02)
    assert RunDir(tmp_path / "run").read_run().precision == "bf16"
    assert RunDir(tmp_path / "fp32").read_run().precision == "fp32"


def test_the_checkpoint_of_a_bf16_run_is_fp32_and_its_average_is_not_its_weights(
    rows_of: RowsOf, tiny: Tiny, tmp_path: Path
) -> None:
    rows_of("train.precision=bf16")
    run_dir = RunDir(tmp_path / "run")
    checkpoint = load_newest(run_dir, run_dir.read_run().config_id, say=pytest.fail)
    assert checkpoint is not None
    weights, ema = checkpoint.full("weights"), checkpoint.full("ema")
    assert all(tensor.dtype == torch.float32 for tensor in (*weights.values(), *ema.values()))
    assert not torch.equal(weights["embed.weight"], weights["embed.weight"].bfloat16().float())
    assert not torch.equal(weights["embed.weight"], ema["embed.weight"])


def test_a_run_writes_its_rows_its_cost_and_its_end(rows_of: RowsOf, tiny: Tiny, tmp_path: Path) -> None:
    rows = rows_of("routing=token_choice", "log.every_images=24")
    run_dir, cost = RunDir(tmp_path / "run"), budget(tiny("routing=token_choice"))
    assert [row["images_seen"] for row in rows] == [24, 48, 64]
    assert rows[-1]["flops"] == 64 * cost.train_flops_per_image
    assert all(row["auxiliary_loss"] > 0 and row["seconds"] > 0 and row["images_per_second"] > 0 for row in rows)
    record, status = run_dir.read_run(), run_dir.read_status()
    assert record.matmul_flops_per_second > 1e8
    assert (record.params_total, record.flops_per_image) == (cost.params_total, cost.flops_per_image)
    assert status is not None
    assert (status.state, status.images_seen, status.reason) == ("done", 64, None)
    evals = [json.loads(line) for line in run_dir.evals.read_text().splitlines()]
    assert {(row["images_seen"], row["weights"]) for row in evals} == {(32, "raw"), (64, "raw"), (64, "ema")}
    routing = [json.loads(line) for line in run_dir.routing.read_text().splitlines()]
    assert {row["images_seen"] for row in routing} == {32, 64}
    assert [path.name for path in complete_checkpoints(run_dir)] == ["images_000000000064"]


def test_the_recorded_balance_loss_is_the_sum_over_layers(rows_of: RowsOf) -> None:
    """The loss of one layer is 1 where the loads are even and little more at the start, times a weight of 0.01."""
    (row, *_) = rows_of("routing=token_choice", "model.num_layers=8", "train.images=8")
    assert 4 * 0.01 * 0.99 < row["auxiliary_loss"] < 4 * 0.01 * 1.5


def test_dense_has_no_auxiliary_loss_to_record(rows_of: RowsOf) -> None:
    assert "auxiliary_loss" not in rows_of("routing=dense")[0]


def test_a_last_batch_is_whole(rows_of: RowsOf) -> None:
    assert rows_of("train.images=60")[-1]["images_seen"] == 64


def test_checkpoints_come_at_their_cadence(rows_of: RowsOf, tmp_path: Path) -> None:
    rows_of("checkpoint.every_images=16", "checkpoint.keep=3")
    names = [path.name for path in complete_checkpoints(RunDir(tmp_path / "run"))]
    assert names == [f"images_{images:012d}" for images in (32, 48, 64)]


def test_the_reporter_hears_every_step_row_and_phase(tiny: Tiny, tmp_path: Path) -> None:
    steps: list[int] = []
    rows: list[int] = []
    phases: list[str] = []
    reporter = Reporter(
        say=pytest.fail, phase=phases.append, step=steps.append, row=lambda row: rows.append(row.images_seen)
    )
    train(tiny("train.images=24", "eval.every_images=16"), RunDir(tmp_path), ["test"], reporter)
    assert steps == [0, 8, 16, 24]
    assert rows == [8, 16, 24]
    assert phases == [
        "building", "training", "validating", "training", "validating", "training", "saving", "training",
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_layer(
    precision: str, tiny: Tiny, tmp_path: Path
) -> None:
    diverges = ("optim.learning_rate=1e3", "optim.weight_decay=1e3", "optim.warmup_images=0")
    config = tiny(*diverges, f"train.precision={precision}")
    line = (
        r"Not finite after \d+ images: the (output|weights|gradient) (of )?[a-z]+.* \(loss .*\)\. Lower optim\.learning"
    )
    with pytest.raises(RunFailedError, match=line) as caught:
        train(config, RunDir(tmp_path), ["test"])
    status = RunDir(tmp_path).read_status()
    assert status is not None
    assert (status.state, status.reason) == ("failed", str(caught.value))
    assert caught.value.exit_code == 1


def test_an_observer_that_breaks_fails_the_run_and_is_not_hidden(tiny: Tiny, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("observed")

    with pytest.raises(ZeroDivisionError):
        train(tiny(), RunDir(tmp_path), ["test"], observers=[broken])
    status = RunDir(tmp_path).read_status()
    assert status is not None
    assert (status.state, status.reason) == ("failed", "ZeroDivisionError: observed")
