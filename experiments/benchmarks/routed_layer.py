"""`ecdit bench routing` times the expert-choice layer, forward and backward, beside dense and every peer, in one run.

A timed step is that of one feed-forward layer: forward, and backward to its input and all its weights. The floor of a
side is the time of its matmuls, by their FLOPs at the measured matmul rate or by their bytes at the measured copy rate,
whichever is longer, plus the bytes that its pointwise and copying work must read and write. These are both sides of the
activation and, for the routed layer, the slots that are gathered and summed, both also in the backward pass.

Legend: B images, T tokens, N = B T, D width, F hidden width, E experts, P slots of an expert.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.benchmarks.layer_memory import peak_bytes
from experiments.benchmarks.neighbour import busy_neighbour
from experiments.benchmarks.peers import (
    DeepSpeedLayer,
    ExpertLoop,
    MatmulsAlone,
    OneHotDispatch,
    dense_of_the_same_flops,
)
from experiments.benchmarks.sides import (
    IN_A_ROW,
    NO_ACCELERATOR,
    Clock,
    Machine,
    Seconds,
    Side,
    SpeedRow,
    layer_side,
    machine_words,
    measure_machine,
    median_ratio,
    take_turns,
)
from experiments.config.schema import RunConfig
from experiments.evaluation.sampling.load_run import current_device
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward
from experiments.training.engine import process_group, resolve_precision
from experiments.training.exported_tensors import DTYPES

OURS, DENSE, MATMULS = "expert choice", "dense of the same FLOPs", "its matmuls alone"
REFERENCE, ONE_HOT, LOOP, DEEPSPEED = "its reference path", "one-hot dispatch", "a loop over experts", "DeepSpeed MoE"
SPEED_UPS = {REFERENCE: {}, ONE_HOT: {8: 1.5, 32: 1.5}, LOOP: {8: 3.0, 32: 3.0}, DEEPSPEED: {8: 1.5, 32: 4.0}}
"""The targets of the speed-up, by number of experts."""
OVER_DENSE, OVER_MATMULS, MEMORY_OVER_DENSE = 1.10, 1.15, 1.15
OVER_DENSE_WITH_NEIGHBOUR = 1.5
"""The target beside a busy process on two cores, where all products of both layers wait for threads."""
ACCELERATOR_COMMAND = "ecdit bench routing --tokens 16384 --width 1152 train.precision=bf16 --json"


@dataclass(frozen=True)
class Layers:
    """The modules of one setting, on their device and in their precision."""

    config: RunConfig
    num_images: int
    dtype: torch.dtype
    device: torch.device
    by_name: dict[str, nn.Module]
    has_neighbour: bool = False

    @property
    def num_slots(self) -> int:
        """Returns the number of slots of all experts together."""
        routing = self.config.routing
        return round(self.num_images * self.config.num_tokens * (routing.capacity_factor or 0))

    def side(self, name: str) -> Side:
        """Returns a side that runs one step of the layer `name`."""
        module, config = self.by_name[name], self.config
        shape = (self.num_images, config.num_tokens, config.model.width)
        if name == MATMULS:
            num_experts = config.routing.num_experts
            shape = (num_experts, self.num_slots // num_experts, config.model.width)
        return layer_side(module, shape, self.device, self.dtype)

    def counted_step(self, name: str) -> Callable[[], Sequence[Tensor]]:
        """Returns a step of the layer `name` as a function that returns the gradients of the weights."""
        module = self.by_name[name]
        shape = (self.num_images, self.config.num_tokens, self.config.model.width)

        def step() -> Sequence[Tensor]:
            x, direction = (torch.randn(shape, device=self.device).to(self.dtype) for _ in range(2))
            x.requires_grad_()
            return torch.autograd.grad(module(x).out_BTD, [x, *module.parameters()], direction)[1:]

        return step


def measure_routing(
    config: RunConfig,
    tokens: int,
    rounds: int,
    clock: Clock,
    on_round: Callable[[], None] = lambda: None,
    has_neighbour: bool = False,
) -> list[SpeedRow]:
    """Measures the rows of one setting. `config` is expert choice; `tokens` are those of the whole batch.

    With `has_neighbour` another process is busy while the layers take turns.
    """
    dtype = DTYPES[resolve_precision(config)]
    device = current_device()
    machine = measure_machine(dtype, device, max(3, rounds // 2), clock)
    with _deepspeed_ready():
        layers = _layers(config, max(1, tokens // config.num_tokens), dtype, device, has_neighbour)
        sides = {name: layers.side(name) for name in layers.by_name}
        with busy_neighbour(has_neighbour):
            seconds = take_turns(sides, rounds, clock, on_round, IN_A_ROW if device.type != "cpu" else 1)
        return [*_speed_rows(layers, machine, seconds), _memory_row(layers), *_accelerator_rows(device)]


def _layers(
    config: RunConfig, num_images: int, dtype: torch.dtype, device: torch.device, has_neighbour: bool
) -> Layers:
    ours = build_feed_forward(config, config.sparse_layer_indices[0])
    plain = config.model_copy(update={"train": config.train.model_copy(update={"implementation": "reference"})})
    reference = build_feed_forward(plain, config.sparse_layer_indices[0])
    assert isinstance(ours, RoutedFeedForward)
    modules: dict[str, nn.Module] = {
        OURS: ours,
        DENSE: dense_of_the_same_flops(config),
        MATMULS: MatmulsAlone(ours.experts),
        REFERENCE: reference,
        ONE_HOT: OneHotDispatch(ours),
        LOOP: ExpertLoop(ours),
        DEEPSPEED: DeepSpeedLayer(config),
    }
    placed = {name: one.to(device, dtype) for name, one in modules.items()}
    return Layers(config, num_images, dtype, device, placed, has_neighbour)


def _speed_rows(layers: Layers, machine: Machine, seconds: Seconds) -> Iterator[SpeedRow]:
    ours, floor = seconds[OURS], {name: _floor_seconds(layers, machine, name) for name in (OURS, DENSE, MATMULS)}
    on_accelerator = layers.device.type != "cpu"
    over_dense = OVER_DENSE_WITH_NEIGHBOUR if layers.has_neighbour else OVER_DENSE
    for name, target in ((DENSE, over_dense), (MATMULS, OVER_MATMULS if on_accelerator else None)):
        yield _row(layers, f"{OURS} / {name}", ours, seconds[name], target, floor[OURS] / floor[name])
    for name, targets in SPEED_UPS.items():
        target = targets.get(layers.config.routing.num_experts)
        yield _row(layers, f"{name} / {OURS}", seconds[name], ours, target, more_is_better=True)


def _row(
    layers: Layers,
    what: str,
    over: list[float],
    under: list[float],
    target: float | None,
    floor: float | None = None,
    more_is_better: bool = False,
) -> SpeedRow:
    ours, peer = (under, over) if more_is_better else (over, under)
    return SpeedRow(
        what,
        _setting(layers),
        median_ratio(over, under),
        target,
        more_is_better,
        floor,
        statistics.median(ours),
        statistics.median(peer),
        len(over),
    )


def _memory_row(layers: Layers) -> SpeedRow:
    """Returns the row of peak memory.

    Its floor is one side of the activation, the inputs and outputs of the slots, and the gradient of the inputs.
    """
    peaks = {name: peak_bytes(layers.counted_step(name)) for name in (OURS, DENSE)}
    element = torch.empty((), dtype=layers.dtype).element_size()
    routing, width = layers.config.routing, layers.config.model.width
    columns = (routing.expert_factor or 0) * width * (2 if routing.expert == "swiglu" else 1)
    held = layers.num_slots * (columns + 3 * width) * element
    return SpeedRow(
        f"peak memory of {OURS} / {DENSE}, beyond weights and gradients",
        _setting(layers),
        peaks[OURS] / peaks[DENSE],
        MEMORY_OVER_DENSE,
        floor=held / peaks[DENSE],
    )


def _floor_seconds(layers: Layers, machine: Machine, name: str) -> float:
    """Returns the least seconds of a layer's step: its matmuls, and the bytes of everything else (see the module)."""
    config, slots = layers.config, layers.num_slots
    routing, width = config.routing, config.model.width
    hidden, tokens = (routing.expert_factor or 0) * width, layers.num_images * config.num_tokens
    element = torch.empty((), dtype=layers.dtype).element_size()
    matrices, columns = (3, 2) if routing.expert == "swiglu" else (2, 1)
    flops = 3 * 2.0 * matrices * slots * width * hidden
    # Three products for each of the forward pass: all weights or their gradients once, and the slots on both sides.
    held = (routing.capacity_factor or 0) if name == DENSE else routing.num_experts
    rows = slots if name != DENSE else tokens
    sides = 2 * rows * width + (columns + 1) * slots * hidden
    matmuls = max(
        machine.seconds(flops), machine.seconds(0.0, 3.0 * (matrices * held * width * hidden + sides) * element)
    )
    if name == MATMULS:
        return matmuls
    # Forward reads the columns and writes one; backward reads them and a gradient, and writes the columns' gradients.
    moved = slots * hidden * (3 * columns + 2)
    if name == OURS:
        matmuls += machine.seconds(3 * 2.0 * tokens * width * routing.num_experts)
        # Gather and its gradient: 2 + 1 slots and a token row. Sum: 1 slot; its gradient reads 2 slots and writes 1.
        moved += width * (7 * slots + 2 * tokens)
    return matmuls + machine.seconds(0.0, moved * element)


def _setting(layers: Layers) -> str:
    config = layers.config
    tokens = layers.num_images * config.num_tokens
    machine = machine_words(layers.device, layers.dtype, layers.has_neighbour)
    return f"{tokens} tokens, d {config.model.width}, {config.routing.num_experts}E, {machine}"


def _accelerator_rows(device: torch.device) -> list[SpeedRow]:
    """Returns rows without a measurement, with the command that fills them, where this machine has no accelerator."""
    if device.type != "cpu":
        return []
    setting = "16384 tokens, d 1152, bf16, 1 device"
    targets = ((DENSE, OVER_DENSE), (MATMULS, OVER_MATMULS))
    return [
        SpeedRow(f"{OURS} / {name}", setting, target=target, skipped=NO_ACCELERATOR, command=ACCELERATOR_COMMAND)
        for name, target in targets
    ]


@contextmanager
def _deepspeed_ready() -> Iterator[None]:
    """Opens a process group of one, which DeepSpeed's layer needs; what it prints goes to a temporary file."""
    with tempfile.TemporaryDirectory() as folder, process_group(Path(folder) / "log.txt"):
        yield
