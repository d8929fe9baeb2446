"""Live tensors and resident set of a real training process, for the test of the memory arithmetic.

    memory_probe.py [--bucket N] KEY=VALUE ...     prints one JSON object, in bytes

Steps with the real engine; a dispatch mode counts every storage while it lives. DeepSpeed's reduction bucket is left
out: a CPU never writes to most of it. With `--bucket` it has N numbers and counts, as on an accelerator.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from experiments.benchmarks.layer_memory import Storages
from experiments.config.memory import BUCKET_ELEMENTS
from experiments.config.overrides import load_config
from experiments.data.loader import TrainStream
from experiments.training import engine as engine_module
from experiments.training.description import resident_peak_bytes
from experiments.training.engine import build_engine, launched_rank, launched_world, process_group, resolve_precision
from experiments.training.host_memory import keep_freed_memory
from experiments.training.objective import forward_loss, micro_batches_of

NUM_STEPS = 3
"""In the first one there is no optimizer state yet, and ZeRO-3 does not yet know what comes next."""

RELEASE_SECONDS = 0.2
"""Gloo's threads still hold a tensor for a moment after the call that reduced it has returned, longer under load.

A reduction bucket of all gradients would then count towards the optimizer's step.
"""


def is_counted(storage: torch.UntypedStorage) -> bool:
    """Whether it is no reduction bucket."""
    return storage.device.type == "cpu" and storage.nbytes() < 2 * BUCKET_ELEMENTS


def checkpoint_blocks(model: torch.nn.Module) -> None:
    """Activation checkpointing around each block, where the model does not do it itself."""
    if getattr(model, "checkpointed", False):
        return
    plain = inspect.unwrap(checkpoint)  # which does not import torch's compiler, as training does not
    for block in model.blocks:
        block.forward = partial(plain, block.forward, use_reentrant=False, preserve_rng_state=False)


def with_bucket(num_elements: int) -> None:
    """Engines built from now on reduce gradients in buckets of so many numbers."""
    plain = engine_module._deepspeed_config

    def smaller(*given):
        settings = plain(*given)
        settings["zero_optimization"]["reduce_bucket_size"] = num_elements
        return settings

    engine_module._deepspeed_config = smaller


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[0] == "--bucket":
        with_bucket(int(arguments[1]))
        arguments = arguments[2:]
    config, measured = load_config(arguments), {}
    keep_freed_memory(config)  # as commands do
    tensors = Storages(with_given=True, is_counted=is_counted)
    with tempfile.TemporaryDirectory() as folder, process_group(Path(folder) / "log"), tensors:
        engine = build_engine(config, resolve_precision(config))
        if config.parallel.activation_checkpointing:
            checkpoint_blocks(engine.model)
        engine.model.train()
        batches = TrainStream(config, launched_rank(), launched_world()).iterate(0)
        for _ in range(NUM_STEPS):
            batch, saved, backward_peaks = next(batches), [], []
            for micro in micro_batches_of(batch, config.train.accumulation):
                before = tensors.live
                loss_B, output = forward_loss(engine.deepspeed, micro, config)
                total = loss_B.mean() + output.auxiliary_loss
                saved.append(tensors.live - before)
                tensors.take_peak()
                engine.deepspeed.backward(total)
                del loss_B, output, total
                time.sleep(RELEASE_SECONDS)
                backward_peaks.append(tensors.take_peak())
                engine.deepspeed.step()
                time.sleep(RELEASE_SECONDS)
                measured["step_peak"] = tensors.take_peak()
            measured["activations"] = saved[0]  # later ones come while the bucket of the one before goes
            measured["backward_peak"] = max(backward_peaks)
        measured["persistent"] = tensors.live
    print(json.dumps({**measured, "resident_peak": resident_peak_bytes(Path("/proc/self/status").read_text())}))


if __name__ == "__main__":
    main()
