"""The training loop: it takes steps, records rows, and validates and saves at the intervals of the config.

Every result depends only on the config and on `images_seen`, so that a run that stops at any step and starts again
continues as if it had not been interrupted. A run ends as done, interrupted (saved, to be continued) or failed (with
the reason in its status).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.config.budget import budget, compute_varies, executed_flops_per_image
from experiments.config.cooldown import cooldown_start
from experiments.config.prepared_settings import require_full_batches
from experiments.config.repa import has_auxiliary_losses
from experiments.config.schema import RunConfig
from experiments.data.loader import Batch, TrainStream
from experiments.data.sources.image_source import open_source
from experiments.distributed.agreement import any_process, of_the_first
from experiments.distributed.deepspeed_library import dist
from experiments.distributed.rendezvous import meet
from experiments.models.parts import assert_matches_budget
from experiments.records.record_types import Origin, State
from experiments.records.run_folder import RunDir
from experiments.records.storage import storage_errors
from experiments.records.wandb_mirror import start_mirror
from experiments.records.writer import RecordWriter
from experiments.routing.build import try_plugin
from experiments.routing.stats import slots_of_image
from experiments.training.branch import begin
from experiments.training.checkpoint_contents import LOSS
from experiments.training.checkpoint_list import complete_checkpoints, saved_checkpoints
from experiments.training.clock import NoClock, StepClock
from experiments.training.description import describe_run, peak_memory_gib
from experiments.training.diagnosis import nonfinite_cause, nonfinite_error
from experiments.training.ending import recorded_end
from experiments.training.engine import (
    Engine,
    build_engine,
    check_world,
    launched_rank,
    launched_world,
    process_group,
    resolve_precision,
)
from experiments.training.first_weights import FirstWeights, begin_or_continue
from experiments.training.matmul_speed import matmul_flops_per_second
from experiments.training.means import RunningMeans
from experiments.training.objective import forward_loss, micro_batches_of, to_device
from experiments.training.pauses import TrainingClock
from experiments.training.reporter import Reporter
from experiments.training.restore import snapshot
from experiments.training.room import require_room
from experiments.training.saver import Saver
from experiments.training.schedule import learning_rate
from experiments.training.stop import StopRequest
from experiments.training.validation import Validator

Observer = Callable[[Engine, RunConfig, int, RecordWriter | None], None]
"""Called at every evaluation with the trained model, to sample previews; the writer is None except on rank 0."""
HEARTBEAT_SECONDS = 10.0
"""The status is written at least this often while training makes steps."""


@dataclass
class Run:
    """The state of a run and the objects that the loop uses."""

    config: RunConfig
    run_dir: RunDir
    engine: Engine
    writer: RecordWriter | None
    reporter: Reporter
    observers: Sequence[Observer]
    train_flops_per_image: int
    means: RunningMeans
    clock: StepClock
    saver: Saver
    seconds: TrainingClock
    heartbeat: float = field(default_factory=time.monotonic)

    def status(self, state: State, reason: str | None = None) -> None:
        """Replaces the recorded status, on the process that writes records."""
        self.heartbeat = time.monotonic()
        if self.writer is not None:
            saved = self.saver.images_saved
            self.writer.status(state, self.means.images_seen, reason, peak_memory_gib(), saved)


def train(
    config: RunConfig,
    run_dir: RunDir,
    command: Sequence[str],
    reporter: Reporter | None = None,
    observers: Sequence[Observer] = (),
    clock: StepClock | None = None,
    restart: bool = False,
    branch_from: RunDir | None = None,
    origin: Origin | None = None,
) -> State:
    """Trains to `train.images`, continuing from the newest checkpoint; returns `done` or `interrupted`.

    With `restart` it starts at the first image instead, and what the folder holds of the run is set aside. A run that
    has not begun takes over the trunk of `branch_from`, a shorter run (`branch.py`). `run.json` keeps `origin`.

    Raises `RunFailedError` for a non-finite loss, and other `EcditError`s for mistakes; the status holds the reason.
    """
    check_world(config)
    if config.data.path is not None:
        require_full_batches(config.train.batch_images, config.data.path)
    open_source(config.data).check()
    try_plugin(config)
    reporter = reporter or Reporter()
    cost = budget(config)
    precision = resolve_precision(config)
    require_room(config, precision)
    first = None
    if config.train.init_from is not None and (restart or not (branch_from or complete_checkpoints(run_dir))):
        first = FirstWeights(config)  # a run that goes on from a checkpoint does not read its parent again
    record = describe_run(config, precision, cost, command, origin, None if first is None else first.as_record())
    with storage_errors(run_dir.path):
        run_dir.path.mkdir(parents=True, exist_ok=True)
    meeting = meet(run_dir, record, reporter.fail)  # ranks that differ are refused before anything is written
    with contextlib.ExitStack() as stack:
        stack.enter_context(meeting.watched())  # now, since rank 0 may copy a large checkpoint while the others wait
        if launched_rank() == 0:  # a folder of another run is refused before anything is built
            if not run_dir.run_json.exists():
                speed = matmul_flops_per_second(record.precision)
                record = record.model_copy(update={"matmul_flops_per_second": speed})
            begin(config, run_dir, record, branch_from)
            if not restart:
                saved_checkpoints(run_dir, reporter.warn)  # raises before rows are cut, where they cannot be reached
        reporter.phase("building")
        stack.enter_context(process_group(run_dir.log, meeting))
        stop = stack.enter_context(StopRequest())
        # A run keeps the precision and the id that it began with. The others may not see the file yet.
        begun = of_the_first(run_dir.read_run, launched_rank(), launched_world())
        engine = build_engine(config, begun.precision)
        if config.parallel.zero_stage != 3:  # ZeRO-3's layers hold no weights between calls
            assert_matches_budget(engine.model, cost, engine.share.count)
        means = begin_or_continue(config, engine, run_dir, begun.config_id, first, restart, reporter)
        first = None  # it may hold all tensors of a parent
        writer = None
        if engine.rank == 0:
            writer = RecordWriter.open(run_dir, record, means.images_seen, start_mirror, restart)
        shapes, keep = engine.partitions.shapes, config.checkpoint.keep
        run = Run(
            config, run_dir, engine, writer, reporter, observers, cost.train_flops_per_image, means, clock or NoClock(),
            Saver(
                run_dir, begun.config_id, shapes, keep, engine.rank, engine.world, means.images_seen,
                cooldown_start(config),
            ),
            TrainingClock(reporter.warn if engine.rank == 0 else lambda message: None),
        )  # fmt: skip
        with recorded_end(run.status, run.writer, meeting, reporter.warn):
            if means.images_seen:
                reporter.say(f"Continuing at {means.images_seen:,} of {config.total_images:,} images.")
            with run.seconds:
                return _loop(run, stop)


def _loop(run: Run, stop: StopRequest) -> State:
    """Trains until the last image of the config or until a signal asks to stop."""
    config, means, engine = run.config, run.means, run.engine
    validator = Validator(config)
    run.status("running")
    run.reporter.step(means.images_seen)
    run.reporter.phase("training")
    engine.model.train()
    stream = TrainStream(config, engine.rank, engine.world)
    saved, trunk = run.saver.images_saved, run.saver.trunk_images
    started = run.seconds.now()
    for batch in stream.iterate(means.images_seen):
        before = means.images_seen
        rate = _step(run, to_device(batch, engine.device), started)
        done = means.images_seen >= config.total_images
        if done or _crossed(before, means.images_seen, config.log.every_images):
            _write_row(run, rate)
        elif time.monotonic() - run.heartbeat > HEARTBEAT_SECONDS:
            run.status("running")
        run.reporter.step(means.images_seen)
        if done or _crossed(before, means.images_seen, config.eval.every_images):
            _evaluate(run, validator, last=done)
        # A signal may reach one process alone, but all must stop after the same step.
        stopped, writing = any_process([stop.is_asked, run.saver.is_writing], engine.world, engine.device)
        run.saver.poll(writing)
        is_time = means.images_seen == trunk or _crossed(before, means.images_seen, config.checkpoint.every_images)
        if done or stopped or is_time:
            # A process that ends must wait, because the thread that writes its checkpoint would end with it.
            _save(run, wait=done or stopped)
        if stopped and not done:
            run.status("interrupted", stop.name)
            return "interrupted"
        if run.saver.images_saved != saved:  # the status records it, so that the run cannot restart by mistake
            saved = run.saver.images_saved
            run.status("running")
        started = run.seconds.now()
    run.status("done")
    return "done"


def _step(run: Run, batch: Batch, started: float) -> float:
    """Takes one optimizer step over this process's share of the batch; returns the learning rate it used.

    `started` is when the loop began to wait for the batch, so that waiting for data is part of the step's seconds.
    """
    config, engine, clock = run.config, run.engine, run.clock
    rate = learning_rate(config, run.means.images_seen)
    engine.set_learning_rate(rate)
    engine.routers.begin(run.means.images_seen)
    measured: list[Tensor] = []
    varies = compute_varies(config, training=True)
    micro_batches = list(micro_batches_of(batch, config.train.accumulation))
    for micro in micro_batches:
        with clock.part("forward"):
            loss_B, output = forward_loss(engine.deepspeed, micro, config)
            total = loss_B.mean() + output.auxiliary_loss
        engine.routers.observe(output.feed_forward)
        # All lie in one tensor, so that their means over all processes take a single all-reduce.
        slots = slots_of_image(output.feed_forward) if varies else torch.zeros_like(loss_B[0])
        measured.append(torch.stack([loss_B.detach().mean(), output.auxiliary_loss.detach(), slots]))
        with clock.part("backward"):
            engine.deepspeed.backward(total)
        with clock.part("optimizer"):
            engine.deepspeed.step()  # it changes the weights only after the last micro batch
    loss, auxiliary_loss, slots_per_image = _mean_over_processes(engine, torch.stack(measured).mean(dim=0))
    grad_norm = float(engine.deepspeed.get_global_grad_norm())
    if not math.isfinite(loss + auxiliary_loss + grad_norm):
        cause = nonfinite_cause(engine.model, micro_batches, config, engine.world)
        raise nonfinite_error(config, run.means.images_seen, cause, f"loss {loss:g}, gradient norm {grad_norm:g}")
    engine.routers.step(engine.world)
    engine.ema.update(run.means.images_seen + config.train.batch_images, config.train.batch_images)
    seconds = run.seconds.now() - started
    executed = None
    if varies:
        executed = config.train.batch_images * executed_flops_per_image(config, slots_per_image, training=True)
    run.means.add(config.train.batch_images, seconds, loss, auxiliary_loss, grad_norm, executed)
    return rate


def _mean_over_processes(engine: Engine, values: Tensor) -> list[float]:
    """Returns the mean of each value over all processes. Collective."""
    if engine.world > 1:
        dist.all_reduce(values)
        values /= engine.world
    means: list[float] = values.tolist()
    return means


def _write_row(run: Run, rate: float) -> None:
    has_auxiliary_loss = has_auxiliary_losses(run.config)
    row = run.means.take_row(rate, run.train_flops_per_image, has_auxiliary_loss)
    if run.writer is not None:
        run.writer.step(row)
    run.reporter.row(row)
    run.status("running")


def _evaluate(run: Run, validator: Validator, last: bool) -> None:
    """Validates with the raw weights, at the end also with the moving average, and then calls the observers."""
    images_seen = run.means.images_seen
    run.reporter.phase("validating")
    evals, routing = validator.measure(run.engine, images_seen, "raw")
    if last:
        with run.engine.ema.applied():
            evals += validator.measure(run.engine, images_seen, "ema")[0]
    if run.writer is not None:
        run.writer.evaluation(evals)
        run.writer.routing(routing)
    for observe in run.observers:
        run.status("running")  # sampling can take minutes, and a run with an old status seems to hang
        run.reporter.phase("sampling")
        observe(run.engine, run.config, images_seen, run.writer)
    run.reporter.phase("training")


def _save(run: Run, wait: bool) -> None:
    """Begins a checkpoint once the one before is complete; with `wait` returns only when it is complete too."""
    run.reporter.phase("saving")
    run.saver.finish(beat=lambda: run.status("running"))
    run.saver.begin({**LOSS, **run.means.state()}, snapshot(run.engine))
    if wait:
        run.saver.finish(beat=lambda: run.status("running"))
    run.reporter.phase("training")


def _crossed(before: int, after: int, every: int) -> bool:
    """Returns whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every
