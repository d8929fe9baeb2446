"""A run in miniature for the tests of executors: records itself as training does, and misbehaves on request.

    worker.py [SEED=BEHAVIOUR ...] --config FILE --run-dir DIR [--branch-from DIR]

The seed of the config picks the behaviour, or `SEED:IMAGES` that of one length; `done` unless told otherwise. A run
that was interrupted continues from the images it had seen and then finishes. A run of `optim.schedule=wsd` makes the
folder of its checkpoint at the beginning of the cooldown, before a behaviour that begins with `late_`, else after it.
`best=RATE` is the learning rate with the lowest validation loss, 0.125, and above `finite=RATE` a run diverges.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

from experiments.config.cooldown import cooldown_start
from experiments.config.designs import load_designed
from experiments.config.identity import config_id, run_name
from experiments.records.origin import read_origin
from experiments.records.record_types import EvalRow, Origin, RunRecord, StepRow
from experiments.records.run_folder import RunDir
from experiments.records.writer import RecordWriter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("choices", nargs="*")
    for option in ("--config", "--run-dir", "--branch-from"):
        parser.add_argument(option, type=Path)
    asked = parser.parse_args()
    designed, run_dir = load_designed(file=asked.config), RunDir(asked.run_dir)
    config, told = designed.config, dict(choice.split("=") for choice in asked.choices)
    images, rate = config.train.images, config.optim.learning_rate
    behaviour = told.get(f"{config.seed}:{images}", told.get(str(config.seed), "done"))
    behaviour = "diverge" if rate > float(told.get("finite", rate)) else behaviour
    print(f"threads {os.environ['OMP_NUM_THREADS']} behaviour {behaviour}", flush=True)
    if behaviour == "mute":
        sys.exit(0)
    before = run_dir.read_status()
    images_seen = before.images_seen if before is not None and before.state == "interrupted" else 0
    origin = read_origin(designed.origin) or Origin()
    writer = RecordWriter.open(run_dir, record(config).model_copy(update=dict(origin)), images_seen)
    writer.status("running", images_seen)
    half, trunk = images // 2, cooldown_start(config)
    if images_seen == 0:
        write_step(writer, half)
        writer.status("running", half)
        if trunk is not None and behaviour.startswith("late_"):
            run_dir.checkpoint(trunk).mkdir(parents=True)
        BEHAVIOURS[behaviour.removeprefix("late_")](writer, half)
    if trunk is not None:
        run_dir.checkpoint(trunk).mkdir(parents=True, exist_ok=True)
    write_step(writer, images)
    for metric in ("val_loss", "inference_seconds_per_image"):
        value = 0.125 + abs(math.log2(rate / float(told.get("best", rate))))
        row = EvalRow(images_seen=images, metric=metric, value=value, num_samples=8, seed=0, weights="raw")
        writer.evaluation([row])
    writer.status("done", images)
    if behaviour == "abort_at_exit":
        os.abort()


def record(config):
    return RunRecord(
        config=config.model_dump(mode="json"),
        config_id=config_id(config),
        name=run_name(config),
        created_at="2026-01-01T00:00:00Z",
        command=sys.argv,
        versions={},
        host="here",
        device="cpu",
        num_threads=1,
        precision="fp32",
        world=1,
        params_total=1,
        params_active=1,
        params_by_part={},
        flops_per_image=1,
        train_flops_per_image=1,
    )


def write_step(writer, images_seen):
    writer.step(
        StepRow(
            images_seen=images_seen,
            flops=1.0,
            seconds=images_seen / 100,
            loss=0.25,
            learning_rate=1e-3,
            grad_norm=1.0,
            images_per_second=100.0,
        )
    )


def crash(writer, images_seen):
    raise RuntimeError("the layer exploded")


def fail(writer, images_seen):
    writer.status("failed", images_seen, "the loss is not finite in blocks.1")
    sys.exit(1)


def diverge(writer, images_seen):
    writer.status("failed", images_seen, f"Not finite after {images_seen:,} images: blocks.1 (loss nan). Lower it.")
    sys.exit(1)


def die(writer, images_seen):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(writer, images_seen):
    """Killed on its first start only."""
    marker = writer.run_dir.path / "died"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def hang(writer, images_seen):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def wait_for_stop(writer, images_seen):
    def save(number, frame):
        writer.status("interrupted", images_seen, "SIGTERM")
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    writer.status("running", images_seen, "ready for signals")
    time.sleep(3600)


def ignore_stop(writer, images_seen):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    writer.status("running", images_seen, "ready for signals")
    time.sleep(3600)


BEHAVIOURS = {
    "done": lambda writer, images_seen: None,
    "abort_at_exit": lambda writer, images_seen: None,
    "crash": crash,
    "fail": fail,
    "diverge": diverge,
    "die": die,
    "die_once": die_once,
    "hang": hang,
    "wait_for_stop": wait_for_stop,
    "ignore_stop": ignore_stop,
}

if __name__ == "__main__":
    main()
