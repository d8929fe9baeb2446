"""A run in miniature for the tests of executors: records itself as training does, and misbehaves on request.

    worker.py [SEED=BEHAVIOUR ...] --config FILE --run-dir DIR [--branch-from DIR]

The seed of the config picks the behaviour, or `SEED:IMAGES` that of one length; `done` unless told otherwise. A run
that was interrupted continues from the images it had seen and then finishes. A run of `optim.schedule=wsd` makes the
folder of its checkpoint at the beginning of the cooldown, before a behaviour that begins with `late_`, else after it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from experiments.config.cooldown import cooldown_start
from experiments.config.identity import config_id, run_name
from experiments.config.overrides import load_config
from experiments.records.record_types import EvalRow, RunRecord, StepRow
from experiments.records.run_folder import RunDir
from experiments.records.writer import RecordWriter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("choices", nargs="*")
    for option in ("--config", "--run-dir", "--branch-from"):
        parser.add_argument(option, type=Path)
    asked = parser.parse_args()
    config, run_dir = load_config(file=asked.config), RunDir(asked.run_dir)
    told, images = dict(choice.split("=") for choice in asked.choices), config.train.images
    behaviour = told.get(f"{config.seed}:{images}", told.get(str(config.seed), "done"))
    print(f"threads {os.environ['OMP_NUM_THREADS']} behaviour {behaviour}", flush=True)
    if behaviour == "mute":
        sys.exit(0)
    before = run_dir.read_status()
    images_seen = before.images_seen if before is not None and before.state == "interrupted" else 0
    writer = RecordWriter.open(run_dir, record(config), images_seen)
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
        row = EvalRow(images_seen=images, metric=metric, value=0.125, num_samples=8, seed=0, weights="raw")
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
    "die": die,
    "die_once": die_once,
    "hang": hang,
    "wait_for_stop": wait_for_stop,
    "ignore_stop": ignore_stop,
}

if __name__ == "__main__":
    main()
