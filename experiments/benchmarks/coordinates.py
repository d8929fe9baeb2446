"""The coordinate check of arXiv 2203.03466, appendix D.1: how outputs grow with the width after a few steps.

Models of several widths take the same few steps at one learning rate. Where hyper-parameters carry over, no output and
no change of an output grows or shrinks with the width: log RMS against log width is flat, and its slope, the exponent,
is 0. `ecdit bench coordinates` prints the exponents of both parametrizations side by side. Steps are plain forward and
backward passes with the optimizer of a run, on one fixed batch, without warm-up, clipping or DeepSpeed. Epsilon is
1e-12, so that it never acts.

Legend: B images, T tokens, L caption length, D width, E experts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.config.overrides import load_config
from experiments.config.presets import find_preset
from experiments.config.schema import RunConfig
from experiments.data.loader import TrainStream
from experiments.layers.feed_forward import RoutedFeedForward
from experiments.models.blocks.block import Block
from experiments.models.blocks.pixart_block import PixArtBlock
from experiments.models.dit import DiT
from experiments.training.objective import forward_loss
from experiments.training.optimizer import build_optimizer

DEFAULTS = (
    "model=nano", "model.head_size=16", "train.batch_images=16", "train.precision=fp32", "optim.learning_rate=4e-3",
    "optim.epsilon=1e-12",
)  # fmt: skip
"""The settings of the check, before those of the user."""
NUM_STEPS = 5
PARAMETRIZATIONS = ("standard", "mup")

Sizes = dict[str, tuple[float, float]]
"""The RMS of each output after the steps, and that of its change since the first step."""


def measure_coordinates(
    overrides: Sequence[str], widths: Sequence[int], seeds: int, on_model: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Returns a row for each output: its exponents `<parametrization>_value` and `<parametrization>_change`.

    The base width is that of the preset. `on_model` is called after each trained model.
    """
    found: dict[str, list[dict[str, list[tuple[float, float]]]]] = {}
    for parametrization in PARAMETRIZATIONS:
        found[parametrization] = []
        for width in widths:
            sizes: dict[str, list[tuple[float, float]]] = {}
            for seed in range(seeds):
                config = check_config(overrides, parametrization, width, seed)
                for name, pair in sizes_after_steps(config).items():
                    sizes.setdefault(name, []).append(pair)
                on_model()
            found[parametrization].append(sizes)
    return [
        {"output": name}
        | {
            f"{parametrization}_{what}": _exponent(widths, [sizes[name] for sizes in by_width], place)
            for parametrization, by_width in found.items()
            for place, what in enumerate(("value", "change"))
        }
        for name in found["standard"][0]
    ]


def check_config(overrides: Sequence[str], parametrization: str, width: int, seed: int) -> RunConfig:
    """Returns the settings of one model of the check."""
    words = [*DEFAULTS, *overrides, f"model.width={width}", f"seed={seed}"]
    standard = load_config(words)
    if parametrization == "standard":
        return standard
    base_width = find_preset(standard.model.name).width
    return load_config([*words, f"model.base_width={base_width}", f"optim.parametrization={parametrization}"])


def sizes_after_steps(config: RunConfig, num_steps: int = NUM_STEPS) -> Sizes:
    """Trains a model for `num_steps` and returns the sizes of its outputs on the batch that it was trained on."""
    torch.manual_seed(config.seed)
    model = DiT(config).train()
    optimizer = build_optimizer(config, model)
    batch = next(TrainStream(config).iterate(0))
    history: list[dict[str, Tensor]] = []
    for step in range(num_steps + 1):
        with _captured(model) as outputs:
            loss_B, output = forward_loss(model, batch, config)
        history.append(outputs)
        if step < num_steps:
            optimizer.zero_grad()
            (loss_B.mean() + output.auxiliary_loss).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    first, last = history[0], history[-1]
    return {name: (_rms(last[name]), _rms(last[name] - first[name])) for name in last}


@contextmanager
def _captured(model: DiT) -> Iterator[dict[str, Tensor]]:
    """Yields a mapping that is filled with the outputs of the next forward pass."""
    found: dict[str, Tensor] = {}

    def keep(**parts: Callable[[Any], Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found.update({name.replace("_", " "): part(output).detach().clone() for name, part in parts.items()})

        return hook

    blocks = [cast(Block, block) for block in model.blocks]
    last = blocks[-1]
    hooks: list[tuple[nn.Module, Callable[..., None]]] = [
        (model.embed, keep(patch_embedding=lambda out: out)),
        (model.text, keep(text_projection=lambda out: out.pooled_BD if out.text_BLD is None else out.text_BLD)),
        (model.time, keep(time_vector=lambda out: out.vector_BD)),
        (model.time.modulation or last.get_submodule("modulation"), keep(modulation=lambda out: out)),
        (last.attention.out, keep(self_attention=lambda out: out)),
        (model.head, keep(velocity=lambda out: out)),
    ]
    if isinstance(last, PixArtBlock):
        hooks.append((last.cross_attention, keep(cross_attention=lambda out: out)))
    routed = [block for block in blocks if isinstance(block.ffn, RoutedFeedForward)]
    parts: dict[str, Callable[[Any], Tensor]] = {"feed_forward": lambda out: out.out_BTD}
    if routed:
        parts["router_logits"] = lambda out: out.assignment.logits_NE
    hooks.append(((routed or blocks)[-1].ffn, keep(**parts)))
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _exponent(widths: Sequence[int], pairs: Sequence[Sequence[tuple[float, float]]], place: int) -> float | None:
    """Returns the slope of log RMS, averaged over seeds, against log width; None where an output is 0."""
    sizes = [[pair[place] for pair in of_seeds] for of_seeds in pairs]
    if min(min(each) for each in sizes) == 0:
        return None
    logs = [statistics.fmean(map(math.log, each)) for each in sizes]
    return statistics.linear_regression([math.log(width) for width in widths], logs).slope
