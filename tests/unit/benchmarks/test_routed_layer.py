"""The measurements of speed: peers compute the same thing, memory counts what lives, rows say what they mean."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from experiments.benchmarks.dropless_steps import counted_flops
from experiments.benchmarks.layer_memory import peak_bytes
from experiments.benchmarks.peers import (
    DroplessLoop,
    ExpertLoop,
    LoopedDiT,
    OneHotDispatch,
    dense_of_the_same_flops,
)
from experiments.benchmarks.routed_layer import DENSE, MEMORY_OVER_DENSE, OURS, REFERENCE, Layers
from experiments.benchmarks.sides import Machine, SpeedRow, median_ratio, take_turns
from experiments.benchmarks.whole_models import time_steps
from experiments.config.overrides import load_config
from experiments.layers import pieces
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.layers.segments import grouped_feed_forward, plain_segments
from experiments.models.dit import DiT
from experiments.training.engine import process_group

SMALL = ["model=nano", "model.width=16", "routing.num_experts=4"]


@pytest.mark.parametrize("peer", [OneHotDispatch, ExpertLoop])
@pytest.mark.parametrize("expert", ["gelu", "swiglu"])
def test_a_peer_gives_what_our_layer_gives(peer: type[nn.Module], expert: str) -> None:
    layer = build_feed_forward(load_config([*SMALL, f"routing.expert={expert}"]), 1)
    assert isinstance(layer, RoutedFeedForward)
    x_BTD, direction_BTD = torch.randn(3, 64, 16, requires_grad=True), torch.randn(3, 64, 16)
    other = peer(layer)
    ours, theirs = layer(x_BTD).out_BTD, other(x_BTD)
    assert_close(theirs, ours)
    of_ours = torch.autograd.grad(ours, [x_BTD, *layer.parameters()], direction_BTD)
    of_theirs = torch.autograd.grad(theirs, [x_BTD, layer.router.weight_DE, *expert_weights(other)], direction_BTD)
    if isinstance(other, ExpertLoop):
        of_theirs = (*of_theirs[:2], torch.stack(of_theirs[2:6]), torch.stack(of_theirs[6:]).mT)
    else:
        of_theirs = (*of_theirs[:2], of_theirs[2].mT, of_theirs[3])
    for mine, another in zip(of_ours, of_theirs, strict=True):
        assert_close(another, mine, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", ["routing.expert=gelu", "routing.expert=swiglu", "routing.balance_loss_weight=0"])
def test_the_model_with_a_loop_over_experts_learns_what_ours_learns(settings: str) -> None:
    config = load_config([*SMALL, "routing=shared_expert", settings])
    models = []
    for model_class in (DiT, LoopedDiT):
        torch.manual_seed(0)
        models.append(model_class(config))
    ours, theirs = (model.blocks[config.sparse_layer_indices[0]].ffn for model in models)
    assert isinstance(theirs, DroplessLoop)
    x_BTD, direction_BTD = torch.randn(3, 64, 16, requires_grad=True), torch.randn(3, 64, 16)
    answers = [layer(x_BTD) for layer in (ours, theirs)]
    assert_close(answers[1].out_BTD, answers[0].out_BTD)
    assert_close(answers[1].auxiliary_loss, answers[0].auxiliary_loss)
    of_x, of_router, *_, of_shared = torch.autograd.grad(answers[0].out_BTD, [x_BTD, *ours.parameters()], direction_BTD)
    found = torch.autograd.grad(
        answers[1].out_BTD, [x_BTD, theirs.router.weight_DE, theirs.shared.w_out.weight], direction_BTD
    )
    for mine, another in zip((of_x, of_router, of_shared), found, strict=True):
        assert_close(another, mine, rtol=1e-4, atol=1e-4)


def test_models_that_were_timed_leave_no_memory_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[weakref.ref[DiT]] = []

    class Watched(DiT):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            built.append(weakref.ref(self))

    config = load_config([*SMALL, "train.batch_images=2", "routing=shared_expert"])
    with process_group(tmp_path / "log.txt"):
        time_steps({"ours": (config, Watched)}, "fp32", 1, "cpu")
        gc.collect()
    assert [one() for one in built] == [None]


def test_grouped_matmuls_are_counted_as_the_loop_over_experts_is() -> None:
    x_MD, w_in_EFD, w_out_EFD = (
        torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((6, 8), (3, 32, 8), (3, 16, 8))
    )
    counted = []
    for compute in (plain_segments, grouped_feed_forward):
        with counted_flops() as counter:
            y_MD = compute(x_MD, torch.tensor([3, 1, 2]), w_in_EFD, w_out_EFD, "swiglu")
            y_MD.backward(torch.ones(6, 8, dtype=torch.bfloat16))
        counted.append(counter.get_total_flops())
    assert counted == [3 * 2 * 6 * 8 * (32 + 16)] * 2


def expert_weights(peer: nn.Module) -> list[nn.Parameter]:
    """Those into the hidden layer, then those out of it."""
    return [parameter for name, parameter in peer.named_parameters() if name.startswith(("w_in", "w_out"))]


def test_the_dense_peer_has_the_parameters_that_a_token_passes_through() -> None:
    dense = dense_of_the_same_flops(load_config(SMALL))
    assert sum(parameter.numel() for parameter in dense.parameters()) == 2 * 8 * 16**2


def test_sides_take_turns_with_fresh_inputs_and_only_the_work_is_timed() -> None:
    log: list[str] = []

    def side(name: str):
        def prepare():
            log.append(f"{name} inputs")
            return lambda: log.append(f"{name} work")

        return prepare

    seconds = take_turns({"a": side("a"), "b": side("b")}, rounds=3, clock="wall")
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}
    assert all(first.replace("inputs", "work") == second for first, second in zip(log[::2], log[1::2], strict=True))
    order = [entry[0] for entry in log[1::2]]
    assert order[4:] == ["a", "b", "b", "a", "a", "b"]


def test_a_ratio_is_within_rounds() -> None:
    assert median_ratio([2.0, 20.0, 9.0], [1.0, 10.0, 1.0]) == 2.0


@pytest.mark.parametrize(("more_is_better", "is_met", "gap"), [(False, False, 1.5), (True, True, 2 / 3)])
def test_a_row_knows_its_direction(more_is_better: bool, is_met: bool, gap: float) -> None:
    row = SpeedRow("a / b", "here", measured=1.5, target=1.1, more_is_better=more_is_better, floor=1.0)
    assert row.is_met is is_met
    assert row.gap == pytest.approx(gap)
    skipped = SpeedRow("a / b", "there", target=1.1, skipped="no accelerator")
    assert skipped.is_met is None
    assert skipped.gap is None


def test_the_floor_is_flops_and_bytes_one_after_the_other() -> None:
    assert Machine(matmul_flops_per_second=10.0, copy_bytes_per_second=4.0).seconds(20.0, 2.0) == 2.5


def test_matmul_speed_memory_counts_what_lives_and_not_the_gradients_of_weights() -> None:
    weight, x_ND = torch.randn(1024, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)

    def step() -> list[torch.Tensor]:
        out_NF = x_ND @ weight.T
        return [torch.autograd.grad(out_NF, [x_ND, weight], torch.ones(64, 1024))[1]]

    output, direction, of_x, of_weight = (4 * 64 * columns for columns in (1024, 1024, 64, 1024))
    assert peak_bytes(step) == output + direction + of_x
    assert peak_bytes(lambda: [step()[0].clone()]) == output + direction + of_x + of_weight


@pytest.mark.skipif(torch.accelerator.is_available(), reason="pieces are for processors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("expert", ["gelu", "swiglu"])
def test_a_routed_layer_holds_no_more_than_dense_and_less_than_its_reference(
    dtype: torch.dtype, expert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**16)
    config = load_config([*SMALL, "routing.num_experts=8", f"routing.expert={expert}"])
    ours, reference = (build_feed_forward(config, 1) for _ in range(2))
    assert isinstance(reference, RoutedFeedForward)
    reference.fast = False
    by_name = {OURS: ours, REFERENCE: reference, DENSE: dense_of_the_same_flops(config)}
    layers = Layers(config, 32, dtype, torch.device("cpu"), {name: one.to(dtype) for name, one in by_name.items()})
    peaks = {name: peak_bytes(layers.counted_step(name)) for name in by_name}
    assert peaks[OURS] <= MEMORY_OVER_DENSE * peaks[DENSE]
    assert peaks[OURS] < peaks[REFERENCE]
