"""Times a step of a dropless router beside expert choice and beside DiT-MoE's loop over experts (`ecdit bench train`).

Each row compares two models in real steps of the real engine, which take turns. Pairs are measured one after another,
so that no more than two models are in memory. The `floor` of a ratio of times is the ratio of the accounted FLOPs, so
that `gap` is what the dropless step takes beyond its FLOPs. Executed FLOPs are counted operator by operator in one
step, forward and backward, with the plain form of attention, because the fused one is not an operator that is counted.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.peers import LoopedDiT
from experiments.benchmarks.sides import Clock, Seconds, SpeedRow, median_ratio
from experiments.benchmarks.whole_models import OURS, setting_of, step_side, time_steps, train_flops
from experiments.config.schema import RunConfig
from experiments.evaluation.sampling.load_run import current_device
from experiments.models.dit import DiT
from experiments.records.record_types import Precision
from experiments.training.engine import build_engine, process_group, resolve_precision

SAME_FLOPS, LOOP = "expert choice of the same FLOPs", "a loop over experts as in DiT-MoE"
OVER_EXPERT_CHOICE, FASTER_THAN_LOOP, EXECUTED = 1.30, 1.0, 1.0
"""The targets of the ratios: times over expert choice's, the loop's times over ours, executed over accounted FLOPs."""


def measure_dropless(
    dropless: RunConfig,
    expert_choice: RunConfig,
    same_flops: RunConfig,
    rounds: int,
    clock: Clock,
    on_round: Callable[[], None] = lambda: None,
) -> list[SpeedRow]:
    """Measures a step of `dropless` beside both configs of expert choice and beside the loop over its own experts."""
    precision, name = resolve_precision(dropless), f"dropless {dropless.routing.name}"
    setting = f"{setting_of(dropless, precision, current_device())}, batch {dropless.train.batch_images}"
    peers: dict[str, tuple[RunConfig, type[DiT]]] = {
        OURS: (expert_choice, DiT),
        SAME_FLOPS: (same_flops, DiT),
        LOOP: (_in_standard(dropless), LoopedDiT),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder, process_group(Path(folder) / "log.txt"):
        executed = executed_flops(dropless, precision) / train_flops(dropless)
        for peer, (config, model_class) in peers.items():
            pair = {name: (dropless, DiT), peer: (config, model_class)}
            seconds = time_steps(pair, precision, rounds, clock, on_round)
            rows.append(_row(name, peer, setting, seconds, train_flops(dropless) / train_flops(config)))
    return [*rows, SpeedRow(f"{name}: executed / accounted FLOPs", setting, executed, EXECUTED, floor=1.0)]


def _in_standard(config: RunConfig) -> RunConfig:
    """Returns `config` in the standard parametrization: the other has no rule for a loop, and steps as fast."""
    model = config.model.model_copy(update={"base_width": None})
    optim = config.optim.model_copy(update={"parametrization": "standard"})
    return config.model_copy(update={"model": model, "optim": optim})


def executed_flops(config: RunConfig, precision: Precision) -> int:
    """Returns the FLOPs of the operators of one training step from the first weights, forward and backward."""
    engine = build_engine(config, precision)
    work = step_side(config, engine)()
    with sdpa_kernel(SDPBackend.MATH), counted_flops() as counter:
        work()
    engine.deepspeed.destroy()
    flops: int = counter.get_total_flops()
    return flops


def counted_flops() -> FlopCounterMode:
    """Returns torch's counter, which also counts grouped matmuls; torch leaves them out."""

    def grouped(a_shape: Sequence[int], b_shape: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(a_shape) * b_shape[-1]  # over all groups together, also where they divide the summed axis

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})


def _row(name: str, peer: str, setting: str, seconds: Seconds, in_flops: float) -> SpeedRow:
    """Returns the row of a pair; that of the loop has the peer's time above ours, as in `ecdit bench routing`."""
    ours, theirs = seconds[name], seconds[peer]
    is_loop = peer == LOOP
    return SpeedRow(
        f"training step of {peer} / {name}" if is_loop else f"training step of {name} / {peer}",
        setting,
        median_ratio(theirs, ours) if is_loop else median_ratio(ours, theirs),
        {OURS: OVER_EXPERT_CHOICE, LOOP: FASTER_THAN_LOOP}.get(peer),
        is_loop,
        None if is_loop else in_flops,
        statistics.median(ours),
        statistics.median(theirs),
        len(ours),
    )
