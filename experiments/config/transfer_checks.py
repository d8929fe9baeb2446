"""Checks the settings by which hyper-parameters carry over to other widths, lengths and numbers of experts."""

from __future__ import annotations

from experiments.config.parametrization import steps_ratio
from experiments.config.presets import find_preset
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError

ROUNDING = 1e-9
"""The error by which a product that should be 1 may be above it."""


def check_head_size(config: RunConfig) -> None:
    """Raises `ConfigError` where `model.head_size` does not divide the width into the given heads, or is odd."""
    model, size = config.model, config.model.head_size
    if size is None:
        return
    if size % 2:
        even = [each for each in range(2, model.width + 1, 2) if model.width % each == 0]
        nearest = min(even, key=lambda each: abs(each - size), default=size + 1)
        raise ConfigError(f"model.head_size={size} is odd.", f"Use model.head_size={nearest}.")
    if model.width % size:
        preset = find_preset(model.name)
        step = size * preset.num_heads // preset.num_kv_heads
        raise ConfigError(
            f"model.head_size={size} does not divide model.width={model.width}.",
            f"Use model.width={-(-model.width // step) * step}.",
        )
    if model.num_heads * size != model.width:
        raise ConfigError(
            f"model.num_heads={model.num_heads} does not fit model.head_size={size} and model.width={model.width}.",
            f"Use model.num_heads={model.width // size}, or leave it out.",
        )


def check_rotary(config: RunConfig) -> None:
    """Raises `ConfigError` where `model.positions=rope` cannot give halves of a head to row and column."""
    model, step = config.model, 4 * config.model.num_heads
    if model.positions == "rope" and model.width % step:
        way = "" if model.head_size else f"model.width={-(-model.width // step) * step}, or "
        raise ConfigError(
            f"model.positions=rope turns pairs of features by row and by column, and a head of "
            f"{model.width // model.num_heads} features is not divisible by 4.",
            f"Use {way}model.positions=sincos.",
        )


def check_transfer(config: RunConfig) -> None:
    """Raises `ConfigError` where the settings of parametrization and length do not fit each other."""
    model, optim, base = config.model, config.optim, config.model.base_width
    if optim.parametrization == "mup" and base is None:
        raise ConfigError(
            "optim.parametrization=mup needs model.base_width, the width at which the learning rate was tuned.",
            f"Use model.base_width={model.width} for a rate that was tuned at this width.",
        )
    if optim.parametrization == "standard" and base is not None:
        raise ConfigError(
            f"model.base_width={base} has no meaning with optim.parametrization=standard.",
            "Use optim.parametrization=mup, or leave model.base_width out.",
        )
    if optim.rate_by_length is not None:
        _check_length(config)


def _check_length(config: RunConfig) -> None:
    optim, ratio = config.optim, steps_ratio(config)
    given = f"optim.rate_by_length={optim.rate_by_length}"
    if optim.name != "adamw":
        raise ConfigError(f"{given} does not fit optim.name={optim.name}: its rule is Adam's.", "Use optim.name=adamw.")
    largest = max(1 - optim.beta1, 1 - optim.beta2)
    if largest * ratio > 1 + ROUNDING:
        steps = config.total_images // config.train.batch_images
        raise ConfigError(
            f"{given} is too many steps beside the {steps} of this run: 1 - beta = {largest:g} times their ratio is "
            "more than 1.",
            f"Use optim.rate_by_length={int(steps / largest)} or less, or train longer.",
        )


def check_gates(config: RunConfig) -> None:
    """Raises `ConfigError` where the gates of this router cannot be normalised or scaled as asked."""
    routing = config.routing
    if routing.gate_norm == "token":
        if routing.gating == "identity":
            raise ConfigError(
                "routing.gate_norm=token does not fit routing.gating=identity: the sum of raw logits may be 0.",
                "Use routing.gating=softmax, or sigmoid.",
            )
        if routing.top_k == 1:
            raise ConfigError(
                "routing.gate_norm=token does not fit routing.top_k=1: every gate would be 1, and the router would "
                "learn nothing.",
                "Use routing.gate_norm=none, or routing.top_k=2.",
            )
    if routing.gate_scale == "auto" and (routing.top_k is not None or routing.gating != "softmax"):
        kind = f"routing.gating={routing.gating}" if routing.top_k is None else f"routing.name={routing.name}"
        raise ConfigError(
            f"routing.gate_scale=auto does not fit {kind}: E / f_c undoes the 1 / E of softmax gates of expert choice.",
            "Use routing.gate_scale=1, or another number.",
        )
    if routing.gate_scale == "auto" and routing.gate_norm == "token":
        raise ConfigError(
            "routing.gate_scale=auto does not fit routing.gate_norm=token, whose gates do not shrink with E.",
            "Use routing.gate_scale=1, or another number.",
        )
