"""Designs: settings that define a run by its relation to others, such as equal FLOPs or equal activated parameters.

They are written among the other settings with the prefix `ecdit.`, so that a sweep file with them is also a W&B sweep,
and `ecdit train` understands what a W&B agent passes:

- `ecdit.train_flops=1e13` trains as many images as that many FLOPs pay for, in whole batches, in place of
  `train.images` (iso-FLOP profiles: Hoffmann et al. 2022, arXiv 2203.15556, section 3.2).
- `ecdit.iso_activation=ffn_factor` or `width` replaces a run with experts by the dense run that activates as many
  parameters, through a wider feed-forward or a wider model. Everything else stays the same, the depth too. A dense run
  is its own match, and `None` leaves the run as it is.
- `ecdit.tune` has a sweep choose a setting for each arm (`sweeps/tune_design.py`). One run cannot do that by itself and
  refuses it.
- `ecdit.seed` seeds the draws of a random sweep, `ecdit.cluster` says where it runs (`sweeps/cluster.py`), and
  `ecdit.on_divergence` what the sweep does after a run that diverged (`sweeps/rate_retries.py`). None changes a run.
- `ecdit.origin` is how a sweep hands a run what `run.json` is to keep about it (`Origin` in
  `experiments/records/record_types.py`). It is written into the file of settings that the sweep makes for the run.

A resolved config does not record how it was designed. `overrides.py` interprets all other settings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.block_sizes import hidden_width
from experiments.config.budget import Budget, budget
from experiments.config.checks import check_config, check_trained
from experiments.config.cooldown import check_cooldown
from experiments.config.identity import run_name
from experiments.config.initial_weights import with_parent
from experiments.config.limits import MAX_FLOPS, MAX_IMAGES
from experiments.config.overrides import (
    DESIGN_SECTION,
    checked_config,
    read_settings,
    resolved_name,
    split_words,
    validated,
)
from experiments.config.routers import routing_defaults
from experiments.config.routing_settings import RoutingConfig
from experiments.config.schema import RunConfig
from experiments.config.values import shown
from experiments.errors import ConfigError, did_you_mean

PREFIX = f"{DESIGN_SECTION}."
TRAIN_FLOPS = f"{PREFIX}train_flops"
ISO_ACTIVATION = f"{PREFIX}iso_activation"
SEED = f"{PREFIX}seed"
CLUSTER = f"{PREFIX}cluster"
TUNE = f"{PREFIX}tune"
ON_DIVERGENCE = f"{PREFIX}on_divergence"
ORIGIN = f"{PREFIX}origin"
OF_A_SWEEP = (SEED, CLUSTER, TUNE, ON_DIVERGENCE)
"""The designs that a sweep reads once for all its runs, and not among the settings of one of them."""
DESIGNS = (TRAIN_FLOPS, ISO_ACTIVATION, *OF_A_SWEEP, ORIGIN)
NONE = ("None", "none", "null", "")

MATMUL_COLUMNS, ALIGNED_WITHIN = 8, 0.002

CostOf = Callable[[RunConfig], Budget]


@dataclass(frozen=True)
class DesignedConfig:
    """Holds a resolved config and what its design asked for; a field is None where nothing was asked."""

    config: RunConfig
    train_flops_budget: float | None = None
    matched_run: str | None = None
    """The name of the run with experts that this dense one is matched to."""
    matched_params_active: int | None = None
    """The number of activated parameters of that run."""
    origin: str | None = None
    """The run's place in a sweep as JSON, which `run.json` is to keep."""


def load_designed(
    overrides: Sequence[str] = (),
    file: Path | None = None,
    cost_of: CostOf = budget,
    begun: Mapping[str, Any] | None = None,
) -> DesignedConfig:
    """Loads a config like `load_config`, from settings that may hold designs. `cost_of` may cache budgets.

    The length of training in `overrides` replaces that of `file`, whichever of them is in images and which in FLOPs.
    Settings that `train.init_from` implies are completed from there, or from `begun`, the settings of a run that has
    begun (`with_parent`). Raises `ConfigError` for a design that does not exist or cannot be met, for a router that is
    not trained, and for weights that do not fit.
    """
    plain, given_designs = separate(overrides)
    written = [] if file is None else read_settings(file)
    designs = separate(f"{key}={text}" for key, text in written if key.startswith(PREFIX))[1]
    written = [pair for pair in written if not pair[0].startswith(PREFIX)]
    says_images = any(setting.startswith("train.images=") for setting in plain)
    if says_images:
        designs.pop(TRAIN_FLOPS, None)
    says_images |= TRAIN_FLOPS in designs and "train.images" in dict(written)
    designs |= given_designs
    _refuse_tuning(designs.get(TUNE, "None"))
    way = _iso_activation(designs.get(ISO_ACTIVATION, "None"))
    flops = _train_flops(designs.get(TRAIN_FLOPS, "None"))
    # The FLOPs will replace the length of training, so the default length must not be refused for its cooldown.
    given = plain if flops is None else [*plain, f"train.images={MAX_IMAGES}"]
    pairs = [*written, *split_words(given)]
    config = checked_config(pairs)
    check_trained(config)
    config = with_parent(config, {resolved_name(key) for key, _ in pairs}, begun)
    if flops is not None and says_images:
        raise ConfigError(f"train.images and {TRAIN_FLOPS} both say how long to train.", "Give only one of them.")
    origin = designs.get(ORIGIN)
    if way is None or config.routing.name == "dense":
        return DesignedConfig(_with_horizon(config, flops, cost_of), flops, origin=origin)
    dense = _matched(config, way, cost_of)
    return DesignedConfig(
        config=_with_horizon(dense, flops, cost_of),
        train_flops_budget=flops,
        matched_run=run_name(_with_horizon(config, flops, cost_of)),
        matched_params_active=cost_of(config).params_active,
        origin=origin,
    )


def separate(overrides: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the overrides without designs, and the designs by name; the last value wins. Arms are expanded."""
    plain: list[str] = []
    designs: dict[str, str] = {}
    for key, text in split_words(overrides):
        if not key.startswith(PREFIX):
            plain.append(f"{key}={text}")
        elif key not in DESIGNS:
            raise ConfigError(f"'{shown(key)}' is not a design.", did_you_mean(key, DESIGNS))
        else:
            designs[key] = text
    return plain, designs


def _refuse_tuning(text: str) -> None:
    """Raises `ConfigError` where a single run, as a W&B agent starts it, is to tune its arm."""
    if text not in NONE:
        raise ConfigError(
            f"{TUNE} compares several runs, and this command trains one.",
            f"Run the sweep file with `ecdit sweep`, or give {TUNE}=None and the setting itself.",
        )


def _iso_activation(text: str) -> str | None:
    if text in NONE:
        return None
    if text not in MATCHES:
        raise ConfigError(
            f"{ISO_ACTIVATION}={shown(text)} is not a way to match.", did_you_mean(text, [*MATCHES, "None"])
        )
    return text


def _train_flops(text: str) -> float | None:
    if text in NONE:
        return None
    try:
        flops = float(text)
    except ValueError:
        flops = 0.0
    if not 0 < flops <= MAX_FLOPS:
        raise ConfigError(
            f"{TRAIN_FLOPS}={shown(text)} is not a number of FLOPs of at most {MAX_FLOPS:g}.",
            f"Write for example {TRAIN_FLOPS}=1e13.",
        )
    return flops


def _with_horizon(config: RunConfig, flops: float | None, cost_of: CostOf) -> RunConfig:
    """Returns `config` with the number of whole batches whose cost is nearest to `flops`."""
    if flops is None:
        return config
    num_batches = _num_batches(config, flops, cost_of)
    if num_batches < 1:
        batch_flops = _flops_of(config, 1, cost_of)
        raise ConfigError(
            f"{TRAIN_FLOPS}={flops:g} does not pay for half a batch of {config.model.name}: "
            f"{config.train.batch_images} images take {batch_flops:.2g}.",
            f"Use at least {TRAIN_FLOPS}={batch_flops:.2g}, or a smaller train.batch_images.",
        )
    trained = validated(_of_length(config, num_batches))
    check_cooldown(trained)
    return trained


def _num_batches(config: RunConfig, flops: float, cost_of: CostOf) -> int:
    """Returns the number of whole batches whose cost is nearest to `flops`; 0 where half a batch costs more."""
    longest = round(flops / (cost_of(config).train_flops_per_image * config.train.batch_images))
    if not config.routing.capacity_warmup_images:
        return longest
    # The mean capacity is the larger, the shorter the training is, so that the cost of an image follows from the number
    # of batches that is sought.
    more = bisect_left(
        range(min(longest, MAX_IMAGES) + 1), flops, key=lambda number: _flops_of(config, number, cost_of)
    )
    return min(max(more - 1, 0), more, key=lambda number: abs(_flops_of(config, number, cost_of) - flops))


def _flops_of(config: RunConfig, num_batches: int, cost_of: CostOf) -> int:
    """Returns the training FLOPs of `config` with a length of `num_batches`."""
    if num_batches == 0:
        return 0
    return cost_of(_of_length(config, num_batches)).train_flops_per_image * num_batches * config.train.batch_images


def _of_length(config: RunConfig, num_batches: int) -> RunConfig:
    images = num_batches * config.train.batch_images
    return config.model_copy(update={"train": config.train.model_copy(update={"images": images})})


def _matched(config: RunConfig, way: str, cost_of: CostOf) -> RunConfig:
    """Returns the dense config whose activated parameters are nearest to those of `config`."""
    dense = config.model_copy(update={"routing": DENSE})
    matched = validated(MATCHES[way](dense, cost_of(config).params_active, cost_of))
    check_config(matched)
    open_start = matched.train.model_copy(update={"init_fingerprint": None})
    return with_parent(matched.model_copy(update={"train": open_start}))  # the weights must fit the dense model too


def _match_ffn_factor(dense: RunConfig, target: int, cost_of: CostOf) -> RunConfig:
    """Returns `dense` with the `ffn_factor` that gives it `target` activated parameters.

    Every hidden column of every feed-forward has equally many parameters, which depend on the activation, the biases
    and the number of streams. The cost function counts those of one more column, and the hidden width follows by
    division. It is rounded to a multiple of 8 where that stays within 0.2% of the parameters: 16-bit matmuls of other
    widths run at a fraction of their speed on accelerators, which would be unfair to the dense side.
    """
    model, hidden = dense.model, hidden_width(dense, dense.model.ffn_factor)
    params_active = cost_of(dense).params_active
    per_column = cost_of(_with_model(dense, ffn_factor=(hidden + 1) / model.width)).params_active - params_active
    exact = hidden + (target - params_active) / per_column
    aligned = MATMUL_COLUMNS * round(exact / MATMUL_COLUMNS)
    close = abs(aligned - exact) * per_column <= ALIGNED_WITHIN * target
    return _with_model(dense, ffn_factor=max(1, aligned if close else round(exact)) / model.width)


def _match_width(dense: RunConfig, target: int, cost_of: CostOf) -> RunConfig:
    """Returns `dense` with the width, found by bisection, whose activated parameters are nearest to `target`.

    Only widths that divide into heads of even size are tried, or of `model.head_size` where it is set; parameters grow
    with the width.
    """
    model = dense.model
    step = 2 * model.num_heads if model.head_size is None else model.head_size * model.num_heads // model.num_kv_heads

    def of(count: int) -> RunConfig:
        if model.head_size is None:
            return _with_model(dense, width=count * step)
        heads = {"num_heads": count * step // model.head_size, "num_kv_heads": count}
        return _with_model(dense, width=count * step, **heads)

    def params_active(count: int) -> int:
        return cost_of(of(count)).params_active

    low, high = 1, 2
    while params_active(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if params_active(middle) < target else (low, middle)
    nearest = min((low, high), key=lambda count: abs(params_active(count) - target))
    return of(nearest)


def _with_model(config: RunConfig, **changes: float) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


DENSE = RoutingConfig.model_validate(routing_defaults({"name": "dense"}))
MATCHES: dict[str, Callable[[RunConfig, int, CostOf], RunConfig]] = {
    "ffn_factor": _match_ffn_factor,
    "width": _match_width,
}
"""The ways to give a dense run a number of activated parameters."""
