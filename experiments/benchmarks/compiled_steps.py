"""`ecdit bench compile` measures what torch.compile saves in training, and after how many steps it has paid for itself.

Each router is trained with the fast implementation and with plain operations, each as it is and compiled, in real steps
of the real engine that take turns. Plain operations are what the compiler can fuse; the fast implementation holds
kernels of its own, at which a compiled graph may break. Only the forward pass and its derivative are compiled, with
fixed shapes; the optimizer is the same on all sides. The seconds in which a new process loads the compiler, with
an empty cache, and compiles a first tiny function are measured once, and added to those of every first compiled step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.measures import MODEL, ROUTERS, Progress
from experiments.errors import EcditError

if TYPE_CHECKING:
    from experiments.benchmarks.sides import Side
    from experiments.config.schema import RunConfig
    from experiments.training.engine import Engine

IMPLEMENTATIONS = ("fast", "reference")


def bench_compile(overrides: list[str], steps: int, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """Returns a row for each router and implementation. Raises `EcditError` where torch finds no C++ compiler."""
    from experiments.config.overrides import load_config

    if any(override.startswith("train.implementation=") for override in overrides):
        raise EcditError("ecdit bench compile measures every train.implementation.", "Leave train.implementation out.")
    configs = [
        [
            load_config([MODEL, *overrides, f"routing={router}", f"train.implementation={implementation}"])
            for implementation in IMPLEMENTATIONS
        ]
        for router in ROUTERS
    ]
    with progress("steps, plain and compiled", len(configs) * (steps + 2)) as advance:
        from experiments.training.host_memory import keep_freed_memory

        _refuse_without_compiler()
        keep_freed_memory(configs[0][0])
        loading = _seconds_to_load_compiler()
        return [row for of_router in configs for row in measure_compiled(of_router, steps, loading, advance)]


def measure_compiled(
    configs: list[RunConfig], steps: int, loading: float, on_round: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Returns a row for each config, whose plain and compiled sides all take turns for `steps` steps.

    `loading` is the number of seconds that the compiler took before it could compile the first of them.
    """
    import tempfile
    from pathlib import Path

    from torch._inductor.utils import fresh_cache

    from experiments.benchmarks.sides import median_ratio, take_turns
    from experiments.benchmarks.whole_models import setting_of, step_side
    from experiments.evaluation.sampling.load_run import current_device
    from experiments.training.engine import build_engine, process_group, resolve_precision

    precision = resolve_precision(configs[0])
    with fresh_cache(), tempfile.TemporaryDirectory() as folder, process_group(Path(folder) / "log.txt"):
        engines: dict[str, Engine] = {}
        sides: dict[str, Side] = {}
        first: dict[str, float] = {}
        breaks: dict[str, int] = {}
        for config in configs:
            for way in ("plain", "compiled"):
                name = f"{config.train.implementation} {way}"
                engines[name] = build_engine(config, precision)
                if way == "compiled":
                    engines[name].model.compile(dynamic=False)
                sides[name] = step_side(config, engines[name])
                first[name], breaks[name] = _first_step(sides[name])
        try:
            seconds = take_turns(sides, steps, "wall", on_round)
        finally:
            for engine in engines.values():
                engine.deepspeed.destroy()  # its hooks on gradients would keep all its memory
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for config in configs:
        plain, compiled = (f"{config.train.implementation} {way}" for way in ("plain", "compiled"))
        first_compiled = first[compiled] + loading
        saved, extra = median[plain] - median[compiled], first_compiled - first[plain]
        rows.append({
            "routing": config.routing.name,
            "implementation": config.train.implementation,
            "setting": f"{setting_of(config, precision, current_device())}, batch {config.train.batch_images}",
            "seconds": median[plain],
            "compiled_seconds": median[compiled],
            "ratio": median_ratio(seconds[plain], seconds[compiled]),
            "ratio_to_fast": median_ratio(seconds["fast plain"], seconds[compiled]),
            "first_step_seconds": first[plain],
            "compiled_first_step_seconds": first_compiled,
            "graph_breaks": breaks[compiled],
            "pays_after_steps": round(extra / saved) if saved > 0 else None,
        })  # fmt: skip
    return rows


def _seconds_to_load_compiler() -> float:
    """Returns the seconds that torch takes to load its compiler and to compile a tiny function."""
    import torch

    from experiments.evaluation.sampling.load_run import current_device

    device = current_device()
    started = time.perf_counter()
    torch.compile(torch.nn.Linear(2, 2).to(device))(torch.zeros(1, 2, device=device)).sum().backward()
    return time.perf_counter() - started


def _first_step(side: Side) -> tuple[float, int]:
    """Returns the seconds of the first step of a side, and at how many places its graph broke while it was compiled."""
    from torch._dynamo.utils import counters

    counters.clear()
    work = side()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started, sum(counters["graph_break"].values())


def _refuse_without_compiler() -> None:
    """Raises `EcditError` where torch cannot compile for this device."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise EcditError("torch.compile needs a C++ compiler.", "Install g++ or clang, or name one in CXX.") from error
