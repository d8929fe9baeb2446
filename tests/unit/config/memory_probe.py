"""Live tensors and resident set of a real training process, for the test of the memory arithmetic.

    memory_probe.py KEY=VALUE ...     prints one JSON object, in bytes

Two steps with the real engine; a dispatch mode counts every storage while it lives. DeepSpeed's reduction bucket is
left out: a CPU never writes to most of it.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.config.memory import BUCKET_ELEMENTS
from experiments.config.overrides import load_config
from experiments.data.loader import TrainStream
from experiments.training.engine import build_engine, process_group, resolve_precision
from experiments.training.loop import _micro_batches
from experiments.training.objective import forward_loss


class LiveTensors(TorchDispatchMode):
    """`live` and `peak` bytes of the storages that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or size >= 2 * BUCKET_ELEMENTS:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: object) -> None:
            self.live -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)

    def take_peak(self) -> int:
        """Since the last call."""
        peak, self.peak = self.peak, self.live
        return peak


def main() -> None:
    config, measured = load_config(sys.argv[1:]), {}
    with tempfile.TemporaryDirectory() as folder, process_group(Path(folder) / "log"), LiveTensors() as tensors:
        engine = build_engine(config, resolve_precision(config.train.precision))
        engine.model.train()
        batches = TrainStream(config, 0, 1).iterate(0)
        for _ in range(2):
            batch = next(batches)
            for micro in _micro_batches(batch, config.train.accumulation):
                before = tensors.live
                loss_B, output = forward_loss(engine.deepspeed, micro, config.model.patch_size)
                total = loss_B.mean() + output.auxiliary_loss
                measured["activations"] = tensors.live - before
                tensors.take_peak()
                engine.deepspeed.backward(total)
                del loss_B, output, total
                measured["backward_peak"] = tensors.take_peak()
                engine.deepspeed.step()
                measured["step_peak"] = tensors.take_peak()
        measured["persistent"] = tensors.live
    resident = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({**measured, "resident_peak": 1024 * int(resident[1]) if resident else None}))


if __name__ == "__main__":
    main()
