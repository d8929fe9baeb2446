"""Builds the DeepSpeed engine around the model, for one process or many, with ZeRO-1 by default.

This module derives the precision, the process group and the DeepSpeed config from the run's config, and sends what
DeepSpeed prints to the run's log. DeepSpeed's checkpoints and schedulers are not used (see `checkpoint.py`,
`schedule.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from experiments.config.ema_widths import power_widths
from experiments.config.schema import RunConfig
from experiments.config.zero_stage import resolved_stage
from experiments.distributed.deepspeed_library import (
    deepspeed,
    deepspeed_logger,
    dist,
    get_accelerator,
)
from experiments.distributed.rendezvous import Meeting
from experiments.errors import ConfigError
from experiments.layers.expert_parallel import ExpertShare
from experiments.models.dit import DiT
from experiments.records.record_types import Precision
from experiments.records.storage import storage_errors
from experiments.training.clipping import clip_before_steps, measure_gradients_at_once
from experiments.training.ema import MovingAverage
from experiments.training.optimizer import RATE_FACTOR, build_optimizer
from experiments.training.partitions import Partitions, partitions_of
from experiments.training.router_states import RouterStates

MIN_AMX_WIDTH = 256
"""Below this width bf16 is slower than fp32 on a processor with AMX, since converting costs more than products gain.

Images a second of one thread in bf16 over fp32, at 64 tokens and batches of 64: 0.69 at width 128 (`micro`), 1.35 at
256 (`mini`; with 256 tokens 1.8, with experts 1.4) and 1.5 at 384 (`S`).
"""
ZERO_3 = {"stage3_param_persistence_threshold": 0}
"""Makes ZeRO-3 partition small weights too, so that a process only has to keep its own partition up to date."""


@dataclass
class Engine:
    """The DeepSpeed engine, its model, its partitions, and the moving averages over them."""

    deepspeed: Any
    model: DiT
    partitions: Partitions
    ema: MovingAverage
    routers: RouterStates
    device: torch.device
    rank: int
    world: int
    zero_stage: int
    share: ExpertShare
    optimizer: torch.optim.Optimizer
    """The client optimizer, over the partitions."""

    @property
    def layers_are_collective(self) -> bool:
        """Says whether calling the model is collective, because processes hold experts or weights for each other."""
        return self.share.count > 1 or (self.zero_stage == 3 and self.world > 1)

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step in every parameter group, which multiplies it by its own factor."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group[RATE_FACTOR]


def launched_world() -> int:
    """Returns the number of processes that the launcher (torchrun, deepspeed) started, which is 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Returns the rank of this process, which is 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def resolve_precision(config: RunConfig) -> Precision:
    """Resolves `auto` to bf16 where it is faster and to fp32 elsewhere.

    It is faster on accelerators, and on processors with AMX for models of at least `MIN_AMX_WIDTH`. The rule looks at
    the config and not at a clock, so that the arms of a comparison have one precision. With ZeRO-0 `auto` is fp32: in
    bf16 DeepSpeed leaves the experts' gradients out of the clip norm (its issue 8613).
    """
    setting = config.train.precision
    if setting != "auto":
        return setting
    if config.parallel.zero_stage == 0:
        return "fp32"
    if torch.accelerator.is_available():
        return "bf16" if get_accelerator().is_bf16_supported() else "fp32"
    has_amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if has_amx and config.model.width >= MIN_AMX_WIDTH else "fp32"


@contextlib.contextmanager
def process_group(log: Path, meeting: Meeting | None = None) -> Iterator[None]:
    """Sets up the distributed environment and tears it down at the end; output and warnings of libraries go to `log`.

    `meeting` is the meeting of the processes, over whose store the group is made.
    """
    meeting = meeting or Meeting()
    with storage_errors(log):
        file = log.open("a", buffering=1, encoding="utf-8")
    with file, _talk_to(file), tempfile.TemporaryDirectory() as folder:
        # gloo connects processes without an accelerator. Where there is one, its own backend replaces gloo below.
        options: dict[str, Any] = {"dist_backend": "gloo", "auto_mpi_discovery": False, "verbose": False}
        alone = "LOCAL_RANK" not in os.environ
        local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(local_rank)
            options["dist_backend"] = get_accelerator().communication_backend_name()
        if launched_world() == 1:
            # A single process meets itself through a file, so it needs no free port.
            options |= {"init_method": f"file://{folder}/rendezvous", "rank": 0, "world_size": 1}
        meeting.make_group(options["dist_backend"])
        deepspeed.init_distributed(**options)
        try:
            yield
        finally:
            dist.destroy_process_group()
            if alone:  # otherwise processes that this one starts would think that a launcher had set it
                os.environ.pop("LOCAL_RANK", None)


@contextlib.contextmanager
def _talk_to(file: TextIO) -> Iterator[None]:
    """Redirects stdout, Python's warnings and DeepSpeed's logger to `file`, since stdout is for data."""
    handlers = deepspeed_logger.handlers[:]
    with contextlib.redirect_stdout(file), warnings.catch_warnings():
        # DeepSpeed's barriers name no device; they need none, because `process_group` has set the current one.
        warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context")
        deepspeed_logger.handlers[:] = [logging.StreamHandler(file)]
        warnings.showwarning = lambda message, category, filename, lineno, *_: print(
            warnings.formatwarning(message, category, filename, lineno), file=file, end=""
        )
        try:
            yield
        finally:
            deepspeed_logger.handlers[:] = handlers


def build_engine(config: RunConfig, precision: Precision, model_class: type[DiT] = DiT) -> Engine:
    """Builds the model of `config`, initialised from `config.seed` alone, and a DeepSpeed engine around it.

    Raises `ConfigError` for ZeRO-0 in bf16: DeepSpeed's fp32 weights are then where no checkpoint would find them.
    """
    share, stage = expert_share(config), resolved_stage(config, precision)
    if stage == 0 and precision == "bf16":  # a run that began in bf16 may be continued in any layout but this one
        raise ConfigError(
            "parallel.zero_stage=0 does not fit this run, which trains in bf16: it keeps no fp32 weights beside those.",
            "Use parallel.zero_stage=1.",
        )
    # Every process draws the same weights. Experts have generators of their own, so that any layout draws the same.
    torch.manual_seed(config.seed)
    model = model_class(config, share, config.parallel.activation_checkpointing)
    optimizer = build_optimizer(config, model)
    if stage == 0:
        clip_before_steps(optimizer, config.optim.clip_norm, share)
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=_deepspeed_config(config, precision, stage)
    )
    if dist.get_world_size() == 1:
        # With ZeRO-0 DeepSpeed would copy all gradients into one buffer, sum that over one process, and copy them back.
        engine.allreduce_no_retain = lambda *args, **kwargs: None
    if stage in (1, 2) and config.train.is_fast and get_accelerator().device_name() != "cpu":
        measure_gradients_at_once(engine.optimizer)
    partitions = partitions_of(model, share, stage, engine.optimizer)
    return Engine(
        deepspeed=engine,
        model=model,
        partitions=partitions,
        ema=MovingAverage(partitions, config.train.ema_halflife_images, power_widths(config)),
        routers=RouterStates(model),
        device=torch.device(get_accelerator().current_device_name()),
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        zero_stage=stage,
        share=share,
        optimizer=optimizer,
    )


def expert_share(config: RunConfig) -> ExpertShare:
    """Returns this process's share of experts. DeepSpeed's expert-parallel groups hold consecutive ranks."""
    count = config.parallel.expert_parallel if config.sparse_layer_indices else 1
    return ExpertShare(dist.get_rank() % count, count)


def check_world(config: RunConfig) -> None:
    """Raises `ConfigError` where the launcher started another number of processes than the config has."""
    world = launched_world()
    if config.parallel.world != world:
        raise ConfigError(
            f"parallel.world={config.parallel.world} but {world} process(es) were launched.",
            f"Use: torchrun --standalone --nproc-per-node {config.parallel.world} -m ecdit_cli train ...",
        )


def is_lost_process(error: Exception) -> bool:
    """Returns whether a collective failed because another process ended; gloo has no error class of its own."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _deepspeed_config(config: RunConfig, precision: Precision, stage: int) -> dict[str, Any]:
    train = config.train
    return {
        "train_batch_size": train.batch_images,
        "train_micro_batch_size_per_gpu": config.micro_batch_images,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": config.optim.clip_norm if stage else 0.0,  # clipping.py clips for ZeRO-0
        "zero_optimization": {"stage": stage, **ZERO_3} if stage == 3 else {"stage": stage},
        "zero_allow_untested_optimizer": True,  # RMSprop is not among the optimizers that DeepSpeed lists as tested
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 2**62,  # DeepSpeed would print its progress, which the reporter shows
    }
