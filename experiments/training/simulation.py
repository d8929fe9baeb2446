"""Simulates a training step of any layout on one machine, with fake tensors that have shapes but no values.

The model, the engine of `engine.py` and the sequence of collectives are real. The engine is built for one rank of a
process group that sends nothing (PyTorch's `fake` backend), on tensors without memory (`FakeTensorMode`), as on a
machine without an accelerator. Shape errors that would appear on 512 processes (experts that do not divide, a partition
of the wrong size, an all-to-all that does not fit) therefore appear here. Storages are counted when they are allocated
and freed, which gives the memory of the real sequence of operations, and the bytes passed to each collective are
counted too. Where the code reads a value back (a norm, an overflow flag) it gets 1 or 0.
"""

from __future__ import annotations

import os
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed._tools.fake_collectives  # registers the shapes of collectives' results
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.config.budget import budget
from experiments.config.data_sets import captions_of
from experiments.config.memory import BUCKET_ELEMENTS
from experiments.config.schema import RunConfig
from experiments.data.loader import Batch
from experiments.data.scenes.features import feature_network
from experiments.distributed.deepspeed_library import CPU_Accelerator, deepspeed, dist, get_accelerator, set_accelerator
from experiments.errors import ConfigError
from experiments.models.dit import DiT
from experiments.records.record_types import Precision
from experiments.training.engine import Engine, build_engine
from experiments.training.objective import forward_loss

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class SimulatedStep:
    """The result of simulating one optimizer step of one rank.

    `persistent`, `activations` and `peak` are bytes of tensors, without DeepSpeed's reduction bucket. `seconds` is the
    time that the simulation itself took.
    """

    rank: int
    params_total: int
    """The number of parameters over all processes."""
    params_held: int
    """The number of parameters in working precision on this process."""
    numbers_kept: int
    """The number of fp32 master weights on this process."""
    persistent: int
    """The bytes that stay allocated between two steps."""
    activations: int
    """The bytes that one forward pass saves for the backward pass."""
    peak: int
    """The largest number of bytes that were allocated at once during a step."""
    collectives: dict[str, tuple[int, int]]
    """The number of calls of each collective in the step, and the bytes that this process passed to them."""
    seconds: float


class ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that returns fixed values for tensors that are read back, and counts storages and collectives.

    `live` and `peak` are bytes of storages that are allocated now, and at most.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.calls: Counter[str] = Counter()
        self.bytes_handed: Counter[str] = Counter()
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and counts the storages of its results."""
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            return _answer(args[0].dtype)
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self._count_collective(func.overloadpacket.__name__.strip("_"), args)
        for tensor in tree_leaves(out):
            # A meta tensor takes no memory in a real run either.
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._count_storage(tensor.untyped_storage())
        return out

    def _count_collective(self, name: str, args: Any) -> None:
        """Counts one collective and the bytes of its input, the last tensor argument of every c10d operation."""
        given = [leaves for arg in args if (leaves := [t for t in tree_leaves(arg) if isinstance(t, Tensor)])]
        self.calls[name] += 1
        self.bytes_handed[name] += sum(t.numel() * t.element_size() for t in given[-1]) if given else 0

    def _count_storage(self, storage: torch.UntypedStorage) -> None:
        # DeepSpeed's reduction buckets are left out. They are allocated whole here, but a CPU backs only the pages that
        # are written.
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or (size >= 2 * BUCKET_ELEMENTS and size % BUCKET_ELEMENTS == 0):
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: object) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)


class _StaysInPlace(DiT):
    """A `DiT` whose `to` does nothing, because a fake tensor cannot be moved to a device."""

    def to(self, *args: Any, **kwargs: Any) -> DiT:  # type: ignore[override]
        """Returns the module as it is."""
        return self


def simulate_step(config: RunConfig, precision: Precision, rank: int = 0) -> SimulatedStep:
    """Builds the engine for `rank` of `config.parallel.world` and runs two optimizer steps.

    Peak and collectives are those of the second step, because the first allocates the optimizer state. No tensor memory
    is needed. Raises `ConfigError` for ZeRO-3, whose processes read back values from each other that fake tensors do
    not have.
    """
    if config.parallel.zero_stage == 3:
        raise ConfigError(
            "parallel.zero_stage=3 cannot be simulated with fake tensors, as its processes compare values.",
            "Use parallel.zero_stage=2.",
        )
    started = time.perf_counter()
    if config.train.repa_weight:
        feature_network(torch.device("cpu"))  # its weights are read from a file, which fake tensors cannot be
    with _pretended_group(rank, config.parallel.world), ExitStack() as modes:
        modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        shapes = modes.enter_context(ShapesOnly())
        engine = build_engine(config, precision, _StaysInPlace)
        engine.model.train()
        total = sum(prod(shape) for shape in engine.partitions.shapes.values())
        assert total == budget(config).params_total, (total, budget(config).params_total)
        activations = _step(engine, config, shapes)
        persistent, shapes.peak = shapes.live, shapes.live
        shapes.calls.clear()
        shapes.bytes_handed.clear()
        _step(engine, config, shapes)  # the first step allocated the optimizer state
        return SimulatedStep(
            rank=rank,
            params_total=total,
            params_held=sum(parameter.numel() for parameter in engine.model.parameters()),
            numbers_kept=sum(flat.numel() for flat in engine.partitions.flats),
            persistent=persistent,
            activations=activations,
            peak=shapes.peak,
            collectives={name: (shapes.calls[name], shapes.bytes_handed[name]) for name in shapes.calls},
            seconds=time.perf_counter() - started,
        )


def _step(engine: Engine, config: RunConfig, shapes: ShapesOnly) -> int:
    """Runs one optimizer step and returns the bytes that its last forward pass saved."""
    saved = 0
    for _ in range(config.train.accumulation):
        batch = _batch(config, config.micro_batch_images)
        before = shapes.live
        loss_B, output = forward_loss(engine.deepspeed, batch, config)
        total = loss_B.mean() + output.auxiliary_loss
        saved = shapes.live - before
        engine.deepspeed.backward(total)
        del loss_B, output, total
        engine.deepspeed.step()
    engine.ema.update(config.train.batch_images, config.train.batch_images)
    return saved


def _batch(config: RunConfig, images: int) -> Batch:
    data, kept = config.data, config.num_train_tokens
    pixels = torch.zeros(images, data.channels, data.image_size, data.image_size)
    caption = {
        name: torch.zeros(images, *shape, dtype=getattr(torch, kind))
        for name, (shape, kind) in captions_of(config).tensors.items()
    }
    return Batch(
        index_B=torch.zeros(images, dtype=torch.int64),
        pixels_BCHW=pixels,
        noise_BCHW=torch.zeros_like(pixels),
        time_B=torch.zeros(images),
        keep_BK=torch.zeros(images, kept, dtype=torch.int64) if config.train.mask_ratio else None,
        **caption,
    )


def _answer(dtype: torch.dtype) -> bool | int | float:
    """Returns the value for a tensor that is read back: False (no overflow), 1.0 (a norm) or 0."""
    if dtype == torch.bool:
        return False
    return 1.0 if dtype.is_floating_point else 0


@contextmanager
def _pretended_group(rank: int, world: int) -> Iterator[None]:
    """Makes a process group of `world` ranks that sends nothing, in which this process is `rank`."""
    assert not torch.distributed.is_initialized(), "a process group is in use"

    before = {name: os.environ.get(name) for name in LAUNCHER}
    os.environ.update(dict(zip(LAUNCHER, (str(rank), str(world), "0"), strict=True)))
    torch.distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        with _on_a_processor(), warnings.catch_warnings():
            # DeepSpeed checks whether memory is aligned, but fake tensors have no address.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)
            yield
    finally:
        dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _on_a_processor() -> Iterator[None]:
    """Makes DeepSpeed use the CPU: it would put its buffers on an accelerator, but model and batch are on the CPU."""
    accelerator = get_accelerator()
    set_accelerator(CPU_Accelerator())
    try:
        yield
    finally:
        set_accelerator(accelerator)
