"""`ecdit bench train` and `ecdit bench sample` time whole models, which take turns in one process.

Training compares expert choice with the dense model that activates as many parameters
(`ecdit.iso_activation=ffn_factor`), in real steps of the real engine; data are drawn before the clock starts. Sampling
compares expert choice with dense of the same depth and width, with both branches of guidance in one call. The weights
are random; sampling costs the same as with trained ones, because expert choice always fills all slots.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from experiments.benchmarks.sides import (
    NO_ACCELERATOR,
    Clock,
    Machine,
    Seconds,
    Side,
    SpeedRow,
    measure_machine,
    median_ratio,
    take_turns,
)
from experiments.config.budget import budget
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.evaluation.sampling.generate import SamplerSettings, sample, validation_captions
from experiments.evaluation.sampling.load_run import current_device
from experiments.evaluation.sampling.replay import allow_replay
from experiments.flow.samplers import Guidance
from experiments.models.dit import DiT
from experiments.records.record_types import Precision
from experiments.training.engine import Engine, build_engine, process_group, resolve_precision
from experiments.training.exported_tensors import DTYPES
from experiments.training.objective import forward_loss, to_device

OURS, DENSE = "expert choice", "dense"
TRAINING, OVERHEAD, UTILISATION = 0.95, 1.05, 0.45
SAMPLE_STEPS, GUIDANCE, CPU_IMAGES = 4, 2.0, 8
TRAIN_COMMAND = "ecdit bench train model=B train.precision=bf16 --json"
UTILISATION_COMMAND = "ecdit bench train model=L routing.num_experts=16 train.precision=bf16 --json"
SAMPLE_COMMAND = "ecdit bench sample model=B train.precision=bf16 --json"


def measure_training(
    ours: RunConfig, dense: RunConfig, rounds: int, clock: Clock, on_round: Callable[[], None] = lambda: None
) -> list[SpeedRow]:
    """Measures images per second relative to iso-activation dense, and the share of the machine's matmul rate."""
    precision, device = resolve_precision(ours), current_device()
    machine = measure_machine(DTYPES[precision], device, 5, clock)
    with tempfile.TemporaryDirectory() as folder, process_group(Path(folder) / "log.txt"):
        seconds = time_steps({OURS: (ours, DiT), DENSE: (dense, DiT)}, precision, rounds, clock, on_round)
    flops = {OURS: train_flops(ours), DENSE: train_flops(dense)}
    setting = f"{setting_of(ours, precision, device)}, batch {ours.train.batch_images}"
    on_accelerator = device.type != "cpu"
    is_promised = on_accelerator and ours.model.name == "L"
    rows = [
        SpeedRow(
            "training images/s of expert choice / iso-activation dense",
            setting,
            median_ratio(seconds[DENSE], seconds[OURS]),
            TRAINING,
            True,
            flops[DENSE] / flops[OURS],
            statistics.median(seconds[OURS]),
            statistics.median(seconds[DENSE]),
            rounds,
        ),
        _utilisation(setting, statistics.median(seconds[OURS]), flops[OURS], machine, is_promised),
    ]
    if not on_accelerator:
        for what, target, command in (
            ("training images/s of expert choice / iso-activation dense", TRAINING, TRAIN_COMMAND),
            ("utilisation: activated FLOPs / measured matmul rate", UTILISATION, UTILISATION_COMMAND),
        ):
            size = "L 16E" if command == UTILISATION_COMMAND else "B"
            rows.append(
                SpeedRow(what, f"{size}, bf16, 1 device", None, target, True, skipped=NO_ACCELERATOR, command=command)
            )
    return rows


def measure_sampling(
    ours: RunConfig,
    dense: RunConfig,
    rounds: int,
    clock: Clock,
    on_round: Callable[[], None] = lambda: None,
) -> list[SpeedRow]:
    """Measures (1 + measured overhead over dense) / (1 + overhead in FLOPs); the paper's numbers are 1.23 / 1.03.

    It samples `eval.batch_images` images at a time, on a CPU at most 8.
    """
    precision, device = resolve_precision(ours), current_device()
    batch_images = ours.eval.batch_images if device.type != "cpu" else min(CPU_IMAGES, ours.eval.batch_images)
    sides = {name: _sampling(config, precision, batch_images) for name, config in ((OURS, ours), (DENSE, dense))}
    seconds = take_turns(sides, rounds, clock, on_round)
    in_flops = budget(ours).flops_per_image / budget(dense).flops_per_image
    what, setting = "sampling: measured / theoretical overhead over dense", setting_of(ours, precision, device)
    rows = [
        SpeedRow(
            what,
            f"{setting}, {batch_images} images, theory {in_flops:.3f}",
            median_ratio(seconds[OURS], seconds[DENSE]) / in_flops,
            OVERHEAD,
            floor=1.0,
            seconds=statistics.median(seconds[OURS]),
            peer_seconds=statistics.median(seconds[DENSE]),
            rounds=rounds,
        )
    ]
    if device.type == "cpu":
        rows.append(
            SpeedRow(
                what, "B, bf16, 1 device", target=OVERHEAD, floor=1.0, skipped=NO_ACCELERATOR, command=SAMPLE_COMMAND
            )
        )
    return rows


def time_steps(
    models: Mapping[str, tuple[RunConfig, type[DiT]]],
    precision: Precision,
    rounds: int,
    clock: Clock,
    on_round: Callable[[], None] = lambda: None,
) -> Seconds:
    """Times one optimizer step of each model on the next batch of its stream; they take turns, and are freed after."""
    gc.collect()  # engines that were destroyed before refer to themselves
    engines = {name: build_engine(config, precision, model_class) for name, (config, model_class) in models.items()}
    try:
        sides = {name: step_side(models[name][0], engine) for name, engine in engines.items()}
        return take_turns(sides, rounds, clock, on_round)
    finally:
        for engine in engines.values():
            engine.deepspeed.destroy()  # its hooks on gradients would keep all its memory


def step_side(config: RunConfig, engine: Engine) -> Side:
    """Returns a side that runs one optimizer step on the next batch of the stream."""
    engine.model.train()
    batches = TrainStream(config).iterate(0)

    def side() -> Callable[[], object]:
        batch = to_device(next(batches), engine.device)

        def work() -> None:
            loss_B, output = forward_loss(engine.deepspeed, batch, config)
            engine.routers.observe(output.feed_forward)
            engine.deepspeed.backward(loss_B.mean() + output.auxiliary_loss)
            engine.deepspeed.step()
            engine.routers.step(1)
            engine.ema.update(config.train.batch_images, config.train.batch_images)

        return work

    return side


def _sampling(config: RunConfig, precision: Precision, batch_images: int) -> Side:
    device = current_device()
    model = allow_replay(DiT(config).to(device, DTYPES[precision]).eval())
    captions_BL = validation_captions(config, batch_images)
    settings = SamplerSettings(SAMPLE_STEPS, Guidance(GUIDANCE))
    shape = (batch_images, config.data.channels, config.data.image_size, config.data.image_size)

    def side() -> Callable[[], object]:
        noise_BCHW = torch.randn(shape, device=device)
        return lambda: sample(model, captions_BL, noise_BCHW, settings)

    return side


def _utilisation(setting: str, seconds: float, flops: float, machine: Machine, is_promised: bool) -> SpeedRow:
    return SpeedRow(
        "utilisation: activated FLOPs / measured matmul rate",
        setting,
        machine.seconds(flops) / seconds,
        UTILISATION if is_promised else None,
        True,
        floor=1.0,
        seconds=seconds,
    )


def train_flops(config: RunConfig) -> float:
    """Returns the accounted FLOPs of one training step."""
    return float(budget(config).train_flops_per_image * config.train.batch_images)


def setting_of(config: RunConfig, precision: Precision, device: torch.device) -> str:
    """Returns the model, its number of experts, the precision and the device, as rows name them."""
    where = f"cpu, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else "1 device"
    return f"{config.model.name} {config.routing.num_experts}E, {precision}, {where}"
