"""Studies with stated loss curves, straight lines, so that interpolation is exact; and stated values of samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.load_records import Records, load_records
from experiments.config.budget import budget
from experiments.config.routers import ROUTERS, RouterRow
from experiments.config.schema import RunConfig
from experiments.data.scenes.objects import COLORS, SHAPES
from experiments.records.compute_map import ComputeMap
from experiments.records.record_types import EvalRow
from experiments.records.routing_map_row import RoutingMapRow
from experiments.records.run_folder import RunDir, find_runs
from experiments.records.writer import append_evaluations, append_routing_maps

IMAGES = 9600
SETTINGS = {"train": {"images": IMAGES}, "eval": {"every_images": 1600}}

# Validation loss at n images is START - slope n + the seed's offset.
START = 0.2
OFFSETS = {0: 0.0, 1: 0.001, 2: -0.001}
Arms = dict[str, tuple[dict[str, Any], dict[str, Any], float]]

ARMS: Arms = {
    "dense": ({}, {"name": "dense"}, 1.0e-5),
    "dense_wide": ({"ffn_factor": 6.0}, {"name": "dense"}, 1.2e-5),
    "token_choice": ({}, {"name": "token_choice"}, 1.6e-5),
    "expert_choice": ({}, {"name": "expert_choice"}, 1.5e-5),
}


@pytest.fixture
def write_arms(tmp_path: Path, write_run: Callable[..., Any]) -> Callable[..., Path]:
    """Writes runs of `ARMS` (or given ones) for seeds and presets into one folder, and returns it."""

    def write(
        arms: Arms = ARMS, seeds: tuple[int, ...] = (0, 1, 2), presets: tuple[str, ...] = ("nano",), **options: Any
    ) -> Path:
        for preset in presets:
            for name, (model, routing, slope) in arms.items():
                for seed in seeds:
                    settings = {**SETTINGS, "model": {"name": preset, **model}, "routing": routing, "seed": seed}
                    drops = {} if routing["name"] == "dense" else {"dropped_share": 0.1, "dropped_share_same_t": 0.2}
                    final = {"val_loss_same_t": START - slope * IMAGES + OFFSETS[seed], **drops}
                    write_run(
                        tmp_path / "study" / f"{preset}-{name}-s{seed}",
                        settings,
                        lambda n, slope=slope, seed=seed: START - slope * n + OFFSETS[seed],
                        **{"final": final, "inference_seconds": 0.01, **options},
                    )
        return tmp_path / "study"

    return write


@pytest.fixture
def study(write_arms: Callable[..., Path]) -> Records:
    """Four arms of three seeds at one size."""
    return load_records([write_arms()])


MANY: dict[str, list[str]] = {
    "tokens": ["st_moe", "promoe", "dsmoe", "loss_free"],
    "experts": ["promoe_ec", "nucleus", "ec_noise_capacity", "moma", "soft_moe"],
    "pairs": ["expert_race"],
    "thresholds": ["diffmoe", "expert_threshold"],
    "fixed": ["hash", "random", "timestep_experts", "switch_dit", "segmoe"],
}


@pytest.fixture
def many_routers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all routers of the registry, and of so many more that a study has 22 of all families."""
    for family, names in MANY.items():
        for name in names:
            if name not in ROUTERS:
                label = name.replace("_", " ").capitalize()
                row = RouterRow(name, label=label, implementation=None, family=family)  # type: ignore[arg-type]
                monkeypatch.setitem(ROUTERS, name, row)
    return list(ROUTERS)


BUDGETS = (1e12, 2e12, 4e12)
WIDTHS = (48, 64, 96, 128)
ISOFLOP_ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "expert_choice": ({}, {"name": "expert_choice", "num_experts": 8}),
    "dense": ({"ffn_factor": 6.0}, {"name": "dense"}),
}


def best_params(flops: float) -> float:
    """The law that `write_budgets` states: N* = 5e5 (C / 1e12)^0.4."""
    return 5e5 * (flops / 1e12) ** 0.4


@pytest.fixture
def write_budgets(tmp_path: Path, write_run: Callable[..., Any]) -> Callable[..., Path]:
    """Writes runs of equal training FLOPs whose loss is a parabola in log parameters about `best_params`."""

    def write(
        budgets: Sequence[float] = BUDGETS, widths: Sequence[int] = WIDTHS, seeds: Sequence[int] = (0,),
        arms: dict[str, tuple[dict[str, Any], dict[str, Any]]] = ISOFLOP_ARMS, moved: float = 0.0,
    ) -> Path:  # fmt: skip
        for (name, (model, routing)), flops, width, seed in product(arms.items(), budgets, widths, seeds):
            settings = {"model": {"name": "nano", "width": width, **model}, "routing": routing, "seed": seed}
            cost = budget(RunConfig.model_validate(settings))
            images = 16 * round(flops / cost.train_flops_per_image / 16)
            best = best_params(flops) * math.exp(moved * (seed - 1))
            loss = 0.1 * (flops / 1e12) ** -0.1 + 0.01 * math.log(cost.params_active / best) ** 2
            settings["train"] = {"images": images, "batch_images": 16}
            path = tmp_path / "isoflop" / f"{name}-{flops:g}-{width}-{seed}"
            write_run(path, settings, lambda n, loss=loss: loss, eval_images=[images], step_images=[images])
        return tmp_path / "isoflop"

    return write


POWERS = {"E": 0.1, "A": 0.03, "a": 0.5}
"""The law that `write_powers` states, C in TFLOP."""


@pytest.fixture
def write_powers(tmp_path: Path, write_run: Callable[..., Any]) -> Callable[..., Path]:
    """Writes runs of two arms whose final loss is `POWERS` in training compute, by `noise` more or less by seed."""

    def write(
        all_images: Sequence[int] = (800, 1600, 3200, 6400, 12800, 25600), widths: Sequence[int] = (48, 64),
        seeds: Sequence[int] = (0, 1), noise: float = 2e-3, folder: str = "powers",
        arms: dict[str, tuple[dict[str, Any], dict[str, Any]]] = ISOFLOP_ARMS, **settings: Any,
    ) -> Path:  # fmt: skip
        for (name, (model, routing)), images, width, seed in product(arms.items(), all_images, widths, seeds):
            given = {**settings, "model": {"name": "nano", "width": width, **model}, "routing": routing, "seed": seed}
            given["train"] = {"images": images, "batch_images": 16}
            flops = images * budget(RunConfig.model_validate(given)).train_flops_per_image
            law = POWERS["E"] + POWERS["A"] * (flops / 1e12) ** -POWERS["a"]
            loss = law * (1 + noise * (seed - 0.5))
            path = tmp_path / folder / f"{name}-{images}-{width}-{seed}"
            write_run(path, given, lambda n, loss=loss: loss, eval_images=[images], step_images=[images])
        return tmp_path / folder

    return write


@pytest.fixture
def powers() -> dict[str, float]:
    """`POWERS`."""
    return POWERS


TENTHS = {f"val_loss_t{tenth}": 0.1 + 0.01 * tenth for tenth in range(10)}


@pytest.fixture
def measure_costs() -> Callable[..., None]:
    """Adds memory and the losses by tenth of t to all runs below a folder."""

    def add(folder: Path) -> None:
        for run in find_runs(folder):
            record, status = run.read_run(), json.loads(run.status_json.read_text())
            run.status_json.write_text(json.dumps(status | {"peak_memory_gib": 0.75}) + "\n")
            seed, router = record.config["seed"], record.config["routing"]["name"]
            gain = 1.0 if router == "dense" else 0.9
            about = {"num_samples": 64, "weights": "raw", "settings": {}}
            rows = [sampled_row(name, gain * (loss + 0.001 * seed), **about) for name, loss in TENTHS.items()]
            memory = {"num_samples": 80, "batch_images": 16, "device": "cpu"}
            append_evaluations(run, [*rows, sampled_row("inference_peak_memory_gib", 0.1 + 0.01 * seed, **memory)])

    return add


SAMPLER: dict[str, Any] = {
    "guidance_start": 0.0, "guidance_stop": 1.0, "steps": 24, "sampler": "euler", "shift": 1.0, "precision": "fp32",
}  # fmt: skip
SCALES = (1.0, 2.0, 4.0)
CHECKPOINTS = (1600, 4800, 8000)
EMA_WIDTHS = (0.03, 0.05, 0.1, 0.15)
"""The widths of reconstructed averages."""
TIMES = (0.9, 0.5, 0.1)
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attribution")


def sampled_row(metric: str, value: float, half: float | None = None, **given: Any) -> EvalRow:
    """A row of images sampled as `ecdit evaluate` does: `given` replaces fields, or settings of the sampler."""
    fields = {name: given.pop(name) for name in list(given) if name in EvalRow.model_fields}
    ends = {} if half is None else {"interval_low": value - half, "interval_high": value + half}
    about = {"images_seen": IMAGES, "num_samples": 512, "seed": 0, "weights": "ema", **ends, **fields}
    return EvalRow(**{"metric": metric, "value": value, "settings": {"guidance": 2.0, **SAMPLER, **given}, **about})


def goodness(run: RunDir) -> float:
    """Of a run, between 0 and 1: more with experts, and with their number; less than 0.01 by seed."""
    config = run.read_run().config
    routing, size = config["routing"], {"nano": 0.0, "micro": 0.12, "mini": 0.2}.get(config["model"]["name"], 0.25)
    sparse = {"dense": 0.0, "token_choice": 0.05}.get(routing["name"], 0.1) + 0.005 * (routing["num_experts"] or 0)
    wide = 0.01 * (config["model"]["ffn_factor"] - 4)
    return 0.4 + wide + size + sparse + 0.02 * (config["seed"] - 1)


def stated_rows(run: RunDir, in_training: bool = True, held_out: bool = True) -> list[EvalRow]:
    """Score, distance, divergence and time: at three scales at the end, and at three points of the training.

    Beside them the loss of averages of four widths.
    """
    score, config = goodness(run), run.read_run().config
    rows = []
    for scale in SCALES:
        gain = {1.0: -0.1, 2.0: 0.0, 4.0: -0.03}[scale]
        rows.append(sampled_row("shapes-geneval", score + gain, 0.04, guidance=scale))
        rows.append(sampled_row("frechet-shapes", 20 * (1 - score - gain), guidance=scale))
        if held_out:
            rows.append(sampled_row("shapes-geneval-held-out", score + gain - 0.15, 0.06, guidance=scale))
        if config["routing"]["name"] != "dense" and scale > 1:  # without guidance there is one branch
            rows.append(sampled_row("branch_divergence", 0.05 * scale, guidance=scale))
    for images in CHECKPOINTS if in_training else ():
        at = {"images_seen": images, "num_samples": 256}
        rows.append(sampled_row("shapes-geneval", score * images / IMAGES, 0.05, **at))
        rows.append(sampled_row("frechet-shapes", 100 * (1 - score) * 1600 / images, **at))
    for width in EMA_WIDTHS:
        loss = sampled_row("validation-loss", 0.6 - 0.1 * score + (width - 0.07) ** 2)
        rows.append(loss.model_copy(update={"settings": {"precision": "fp32", "ema_width": width}}))
    cost = 2e-9 * run.read_run().flops_per_image
    rows.append(sampled_row("inference_seconds_per_image", cost, num_samples=80, batch_images=16, device="cpu"))
    return rows


@pytest.fixture
def evaluate() -> Callable[..., None]:
    """Adds `stated_rows` to all runs below a folder."""

    def add(folder: Path, **options: Any) -> None:
        for run in find_runs(folder):
            append_evaluations(run, stated_rows(run, **options))

    return add


@pytest.fixture
def sampled() -> Callable[..., EvalRow]:
    """`sampled_row`."""
    return sampled_row


def scene_rows(num_experts: int, layers: Sequence[int], num_tokens: int = 16, **given: Any) -> list[RoutingMapRow]:
    """Rows in which expert e has a share that grows with e, and at the time t = 0.5 all have the same."""
    experts = np.arange(1.0, num_experts + 1)
    rising, even = experts / experts.sum(), np.ones(num_experts) / num_experts
    by_position_TE = np.roll(rising, 1) + np.zeros((num_tokens, 1))
    by_position_TE[: num_tokens // 2] = even
    rows = []
    for layer in layers:
        for time in (*TIMES, None):
            load = (even if time == 0.5 else rising).tolist()
            about: dict[str, Any] = {
                "images_seen": IMAGES, "weights": "ema", "source": "scenes", "num_images": 64, "layer": layer,
                "time": time, "load": load, "entropy": 0.9, "dropped_share": 0.1, "experts_per_token": [0.1, 0.9],
                "object_experts": 3.0 - (time or 0.5), "background_experts": 1.5,
            }  # fmt: skip
            if time in (TIMES[0], TIMES[-1], None):
                about["load_by_class"] = {
                    attribute: {value: np.roll(rising, i).tolist() for i, value in enumerate(values)}
                    for attribute, values in {"kind": KINDS, "colour": COLORS, "shape": SHAPES}.items()
                }
            if time is None:
                by_kind = {kind: np.roll(rising, i).tolist() for i, kind in enumerate(KINDS)}
                about |= {"load_by_position": by_position_TE.T.tolist(), "load_by_kind": by_kind}
            rows.append(RoutingMapRow.model_validate(about | given))
    return rows


def compute_map(num_images: int = 6, num_layers: int = 3, side: int = 8) -> ComputeMap:
    """Images of one square each; (layer + call) experts on its tokens, one elsewhere."""
    images = np.full((num_images, 32, 32, 3), 127, np.uint8)
    experts = np.ones((num_images, num_layers, 5, side, side), np.uint8)
    more = 1 + np.add.outer(np.arange(num_layers), np.arange(5)).astype(np.uint8)
    for i in range(num_images):
        at = (3 * i) % 20
        images[i, at : at + 12, at : at + 12] = (200, 40, 40 * (i % 6))
        tokens = slice(at * side // 32, (at + 12) * side // 32)
        experts[i, :, :, tokens, tokens] = more[:, :, None, None]
    captions = ("a red circle left of a blue square", "two green hearts", "a yellow bar")
    return ComputeMap(
        captions=tuple(captions[i % 3] for i in range(num_images)), images_BHWC=images,
        experts_BKNT=experts.reshape(num_images, num_layers, 5, side * side),
        times_N=np.linspace(1, 0.2, 5, dtype=np.float32), layers_K=np.arange(1, 2 * num_layers, 2),
        num_experts=8, images_seen=IMAGES,
    )  # fmt: skip


@pytest.fixture
def map_routing() -> Callable[..., None]:
    """Adds `scene_rows` and a `compute_map` to all sparse runs below a folder."""

    def add(folder: Path, layers: Sequence[int] = (1, 3, 5), **given: Any) -> None:
        for run in find_runs(folder):
            routing = json.loads(run.run_json.read_text())["config"]["routing"]
            if routing["name"] != "dense":
                append_routing_maps(run, scene_rows(routing["num_experts"], layers, **given))
                compute_map().save(run.compute_map)

    return add


@pytest.fixture
def make_compute_map() -> Callable[..., ComputeMap]:
    """`compute_map`."""
    return compute_map
