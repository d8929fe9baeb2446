"""Writes the folder of a study that never ran: a frozen plan, and the records of runs that are done.

`study_plan` plans as many runs as wanted, in the proportions of a real study: three seeds of an arm, several routers
and numbers of experts in a setup, and many setups (sizes, lengths of training and learning rates). `write_runs` writes
what each run would have recorded. The losses follow a power law of compute, with a gain for each router and an offset
for each seed, so that every table, figure and fit has something to find. Numbers have as many digits as measured ones,
because files of shorter numbers would be read faster. Equal arguments give equal files.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.records.record_types import BALANCE_LOSS, EvalRow, Record, RoutingRow, RunRecord, Status
from sweeps.folder import SweepFolder
from sweeps.plan import Plan, PlannedRun
from sweeps.planner import make_plan
from sweeps.spec import parse_spec

NUM_ROWS = 1000
"""Rows of `steps.jsonl` of each run."""
NUM_EVALUATIONS = 10
PRESETS = ("nano", "micro", "mini")
LENGTHS = (1, 2, 4, 8)
ROUTERS = ("dense", "expert_choice", "token_choice", "loss_free")
EXPERTS = (4, 8, 16)
SEEDS = (0, 1, 2)
RUNS_OF_A_RATE = len(PRESETS) * len(LENGTHS) * (1 + (len(ROUTERS) - 1) * len(EXPERTS)) * len(SEEDS)
"""A dense run is the same at every number of experts."""
STEP = (
    '{{"images_seen":{},"flops":{!r},"seconds":{!r},"loss":{!r},"learning_rate":{!r},"grad_norm":{!r},'
    '"images_per_second":{!r}}}'
)
GAINS = {"dense": 0.0, "token_choice": 0.04, "loss_free": 0.05, "expert_choice": 0.07}
BEST_RATE, IMAGES_PER_SECOND, SAMPLES = 2e-3, 400.0, 320


def study_plan(num_runs: int, num_rows: int = NUM_ROWS, overrides: Sequence[str] = ()) -> Plan:
    """Returns the plan of a study of `num_runs` runs, each of which writes `num_rows` rows of steps.

    `overrides` (`KEY=VALUE`) replace its settings.
    """
    rates = [BEST_RATE * 1.25**power for power in range(-(-num_runs // RUNS_OF_A_RATE))]
    batch, every = 32, 320
    parameters: dict[str, Any] = {
        "optim.learning_rate": {"values": rates},
        "model.name": {"values": list(PRESETS)},
        "train.images": {"values": [length * every * num_rows for length in LENGTHS]},
        "routing.name": {"values": list(ROUTERS)},
        "routing.num_experts": {"values": list(EXPERTS)},
        "seed": {"values": list(SEEDS)},
    }
    fixed = [f"train.batch_images={batch}", f"eval.images={SAMPLES}", "eval.sample_images=0"]
    content = {"program": "ecdit", "method": "grid", "parameters": parameters}
    plan = make_plan(parse_spec(content, default_name="study"), [*fixed, *overrides])
    return plan.model_copy(update={"runs": plan.runs[:num_runs]})


def write_runs(
    folder: SweepFolder,
    plan: Plan,
    num_rows: int = NUM_ROWS,
    num_evaluations: int = NUM_EVALUATIONS,
    on_run: Callable[[], None] = lambda: None,
) -> None:
    """Writes `plan` into `folder`, and the records of all its runs; `on_run` is called after each of them."""
    folder.write_plan(plan)
    for run in plan.runs:
        run_dir = folder.run_dir(run)
        run_dir.path.mkdir(parents=True)
        at = [round(run.images * part / num_evaluations) for part in range(1, num_evaluations + 1)]
        run_dir.run_json.write_text(_record(run).model_dump_json(exclude_none=True))
        run_dir.steps.write_text(_steps(run, num_rows))
        run_dir.evals.write_bytes(as_lines(list(_evaluations(run, at))))
        run_dir.routing.write_bytes(as_lines(list(_routing(run, at))))
        status = Status(
            state="done", images_seen=run.images, images_total=run.images, heartbeat=0.0, peak_memory_gib=0.4,
            balance_loss=BALANCE_LOSS,
        )  # fmt: skip
        run_dir.status_json.write_text(status.model_dump_json(exclude_none=True))
        on_run()


def _record(run: PlannedRun) -> RunRecord:
    return RunRecord(
        config=run.config, config_id=run.config_id, name=run.name, sweep="study", created_at="2026-01-01T00:00:00Z",
        command=["ecdit", "train"], versions={"python": "3.11.7", "torch": "2.13.0"}, host="nowhere",
        device="cpu: 2 cores", num_threads=1, precision="fp32", world=1, matmul_flops_per_second=1e11,
        params_total=run.params_total, params_active=run.params_active,
        params_by_part={"embed": run.params_active // 10, "ffn": run.params_total - run.params_active // 10},
        flops_per_image=run.flops_per_image, train_flops_per_image=run.train_flops_per_image,
    )  # fmt: skip


def _loss(run: PlannedRun, images: float) -> float:
    """Returns a loss that falls with compute, is lower with more experts, and is worse away from the best rate."""
    flops = images * run.train_flops_per_image
    routing, rate = run.config["routing"], run.config["optim"]["learning_rate"]
    gain = GAINS[routing["name"]] * math.log2(max(2, routing["num_experts"] or 2))
    penalty = 0.05 * math.log(rate / BEST_RATE) ** 2
    excess: float = (1 - gain + penalty + 0.01 * (run.config["seed"] - 1)) * (flops / 1e12) ** -0.15
    return 0.2 + excess


def _steps(run: PlannedRun, num_rows: int) -> str:
    random = np.random.default_rng(zlib.crc32(run.name.encode()))
    images = np.linspace(run.images / num_rows, run.images, num_rows).round().astype(np.int64)
    noise = random.standard_normal((3, num_rows))
    rate = run.config["optim"]["learning_rate"] * np.minimum(1, images / (0.05 * run.images))
    ends = np.array([_loss(run, float(images[0])), _loss(run, float(images[-1]))])
    smooth = np.exp(np.interp(np.log(images), np.log(images[[0, -1]]), np.log(ends)))
    columns = (
        images, images * float(run.train_flops_per_image), images / IMAGES_PER_SECOND * (1 + 1e-3 * noise[0]),
        smooth * (1 + 0.02 * noise[1]), rate, np.exp(noise[1] - 1), IMAGES_PER_SECOND + 9 * noise[2],
    )  # fmt: skip
    return "".join(STEP.format(*row) + "\n" for row in zip(*(each.tolist() for each in columns), strict=True))


def _evaluations(run: PlannedRun, at: Sequence[int]) -> Iterator[EvalRow]:
    def row(images: int, metric: str, value: float, **settings: Any) -> EvalRow:
        return EvalRow(
            images_seen=images, metric=metric, value=value, num_samples=SAMPLES, seed=0, weights="raw",
            settings=settings,
        )  # fmt: skip

    for images in at:
        loss = _loss(run, images)
        for suffix, factor in (("", 1.0), ("_same_t", 1.01)):
            yield row(images, f"val_loss{suffix}", factor * loss)
            yield from (row(images, f"val_loss{suffix}_t{t}", factor * loss * (1.7 - t / 10)) for t in range(10))
        if run.config["routing"]["name"] != "dense":
            yield row(images, "dropped_share", 0.1 * loss)
            yield row(images, "dropped_share_same_t", 0.2 * loss)
    yield row(run.images, "inference_seconds_per_image", run.flops_per_image / 1e9, steps=24)


def _routing(run: PlannedRun, at: Sequence[int]) -> Iterator[RoutingRow]:
    experts = run.config["routing"]["num_experts"]
    if run.config["routing"]["name"] == "dense":
        return
    for images in at:
        for layer in range(1, run.config["model"]["num_layers"], 2):
            yield RoutingRow(
                images_seen=images, layer=layer, condition="mixed_t", load=[1 / experts] * experts, entropy=0.7,
                load_entropy=1.0, dropped_share=0.1, experts_per_token=[0.1, 0.2, 0.3, 0.4], slots_per_token=2.0,
            )  # fmt: skip


def as_lines(rows: Sequence[Record]) -> bytes:
    """Returns the content of a file of these rows, in JSON lines."""
    return b"".join(row.model_dump_json(exclude_none=True).encode() + b"\n" for row in rows)
