"""`ecdit bench routing --routers all` times the layer of every router over a dense layer of the same executed FLOPs.

A step is forward in training, with auxiliary losses, and backward to the input and all weights. The FLOPs are those
that a forward pass really executes on the tokens of the benchmark (`torch.utils.flop_counter`), of the router and of
the experts; the dense layer has the same activation and the hidden width that takes as many. What remains of the ratio
is what routing costs beside its matmuls: selection, gather and sum, small products, losses.

Legend: N tokens, D width, F hidden width.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.neighbour import busy_neighbour
from experiments.benchmarks.sides import (
    Clock,
    SpeedRow,
    layer_side,
    machine_words,
    median_ratio,
    take_turns,
)
from experiments.config.schema import RunConfig
from experiments.evaluation.sampling.load_run import current_device
from experiments.layers.feed_forward import DenseFeedForward, build_feed_forward
from experiments.routing.contract import FeedForwardOutput
from experiments.training.engine import resolve_precision
from experiments.training.exported_tensors import DTYPES

TARGET = 1.35
"""The most that a router's layer may take over dense."""
DENSE = "dense"


def measure_router(
    config: RunConfig,
    tokens: int,
    rounds: int,
    clock: Clock,
    on_round: Callable[[], None] = lambda: None,
    has_neighbour: bool = False,
) -> SpeedRow:
    """Measures one router beside its dense layer, which take turns; `tokens` are those of the whole batch.

    With `has_neighbour` another process is busy while they do.
    """
    dtype = DTYPES[resolve_precision(config)]
    device, name = current_device(), config.routing.name
    torch.manual_seed(config.seed)
    shape = (max(1, tokens // config.num_tokens), config.num_tokens, config.model.width)
    layer = build_feed_forward(config, config.sparse_layer_indices[0]).to(device, dtype).train()
    flops, slots = executed(layer, torch.randn(shape, device=device, dtype=dtype))
    activation = config.routing.expert if config.routing.expert in ("gelu", "swiglu") else "gelu"
    matrices, num_tokens = 3 if activation == "swiglu" else 2, shape[0] * shape[1]
    hidden = max(1, round(flops / (2 * matrices * num_tokens * config.model.width)))
    dense = DenseFeedForward(config.model.width, hidden, activation).to(device, dtype)
    sides = {
        name: layer_side(layer, shape, device, dtype, with_losses=True),
        DENSE: layer_side(dense, shape, device, dtype),
    }
    with busy_neighbour(has_neighbour):
        seconds = take_turns(sides, rounds, clock, on_round)
    return SpeedRow(
        f"{name} / dense of the same executed FLOPs",
        f"{num_tokens} tokens, {slots:.2f} slots per token, d {config.model.width}, "
        f"{config.routing.num_experts}E, {machine_words(device, dtype, has_neighbour)}",
        median_ratio(seconds[name], seconds[DENSE]),
        TARGET,
        seconds=statistics.median(seconds[name]),
        peer_seconds=statistics.median(seconds[DENSE]),
        rounds=rounds,
    )


def executed(layer: nn.Module, x_BTD: Tensor) -> tuple[int, float]:
    """Returns the FLOPs of the matmuls of one forward pass, and the expert slots that it computes per token."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        answer: FeedForwardOutput = layer(x_BTD)
    slots = 1.0 if answer.assignment is None else answer.assignment.num_slots / (x_BTD.shape[0] * x_BTD.shape[1])
    return counter.get_total_flops(), slots
