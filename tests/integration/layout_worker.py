"""One of several processes that really train small models on many layouts, one after the other.

Its argument is a JSON file of `Task`s; rank 0 writes what came of them beside it. Not a test by itself: see
`test_expert_parallel.py`.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.distributed.agreement import everyone, first_trouble
from experiments.distributed.deepspeed_library import dist
from experiments.models.dit import DiT
from experiments.records.run_folder import RunDir
from experiments.routing.router import Router
from experiments.training.checkpoint import load_newest
from experiments.training.engine import Engine, build_engine, process_group
from experiments.training.objective import forward_loss
from experiments.training.restore import restore, snapshot
from experiments.training.router_states import router_state
from experiments.training.saver import Saver
from experiments.training.schedule import learning_rate

SMALL = (
    "model=nano", "model.width=32", "model.num_layers=2", "train.images=64", "train.batch_images=8",
    "optim.warmup_images=16", "optim.learning_rate=1e-2", "routing.num_experts=4", "routing.group_images=1",
    "train.precision=fp32",
)  # fmt: skip


class Undecided(DiT):
    """Whose routers find all experts equal."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        for module in self.modules():
            if isinstance(module, Router):
                torch.nn.init.zeros_(module.weight_DE)


@dataclass(frozen=True)
class Task:
    """Train `num_steps` steps from `start` on, from a checkpoint where one is named, and save where asked."""

    overrides: list[str]
    num_steps: int
    start: int = 0
    load: str | None = None
    save: str | None = None
    undecided: bool = False
    """Routers start without preferences, so that the same experts take every token and the others none."""


@dataclass
class Outcome:
    """Losses and gradient norms of the whole batch, by step; what each process holds, and computes in the last step."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    numbers_held: list[int] = field(default_factory=list)
    experts_held: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    router_states: list[str] = field(default_factory=list)
    """What the routers of each process have learned, as JSON."""


def perform(task: Task, world: int) -> Outcome:
    """On the process group of this process."""
    config = load_config([*SMALL, f"parallel.world={world}", *task.overrides])
    engine = build_engine(config, "fp32", Undecided if task.undecided else DiT)
    if task.load is not None:
        wanted = engine.partitions.wanted()
        checkpoint = load_newest(
            RunDir(Path(task.load)), "layouts", print, wanted=wanted, agree=lambda found: first_trouble(found, world)
        )
        assert checkpoint is not None
        restore(engine, checkpoint)
    outcome = Outcome()
    for number in range(task.start, task.start + task.num_steps):
        is_last = number == task.start + task.num_steps - 1
        with FlopCounterMode(display=False) if is_last else nullcontext() as counter:
            _step(engine, config, number * config.train.batch_images, outcome)
    assert counter is not None
    outcome.flops = everyone(counter.get_total_flops(), world)
    outcome.router_states = everyone(json.dumps(router_state(engine.model)), world)
    outcome.numbers_held = everyone(sum(flat.numel() for flat in engine.partitions.flats), world)
    experts = [p.shape[0] for name, p in engine.model.named_parameters() if name.endswith("experts.w_in_EFD")]
    outcome.experts_held = everyone(sum(experts), world)
    if task.save is not None:
        Path(task.save).mkdir(parents=True, exist_ok=True)
        saver = Saver(RunDir(Path(task.save)), "layouts", engine.partitions.shapes, 1, engine.rank, world)
        saver.begin({"images_seen": (task.start + task.num_steps) * 8}, snapshot(engine))
        saver.finish()
    engine.deepspeed.destroy()
    del engine  # ZeRO-3 has a bucket of 2 GiB, in cycles that only the collector ends
    gc.collect()
    return outcome


def _step(engine: Engine, config: RunConfig, images_seen: int, outcome: Outcome) -> None:
    engine.set_learning_rate(learning_rate(config, images_seen))
    batch = TrainStream(config, engine.rank, engine.world).batch(images_seen)
    engine.routers.begin(images_seen)
    loss_B, output = forward_loss(engine.deepspeed, batch, config)
    engine.routers.observe(output.feed_forward)
    engine.deepspeed.backward(loss_B.mean() + output.auxiliary_loss)
    engine.deepspeed.step()
    engine.routers.step(engine.world)
    engine.ema.update(images_seen + config.train.batch_images, config.train.batch_images)
    mean = (loss_B.mean() + output.auxiliary_loss).detach().double()
    if engine.world > 1:
        dist.all_reduce(mean)
    outcome.losses.append(float(mean) / engine.world)
    outcome.norms.append(float(engine.deepspeed.get_global_grad_norm()))


def main() -> None:
    """Every task of the file that is named on the command line, in order."""
    path = Path(sys.argv[1])
    with process_group(path.with_suffix(".log")):
        rank, world = dist.get_rank(), dist.get_world_size()
        tasks: dict[str, Any] = json.loads(path.read_text())
        outcomes = {name: asdict(perform(Task(**task), world)) for name, task in tasks.items()}
        if rank == 0:
            path.with_suffix(".done").write_text(json.dumps(outcomes))
