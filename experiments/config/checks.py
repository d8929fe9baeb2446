"""Checks that the settings of a run fit each other. Each mistake is reported in one line with a value that works.

`schema.py` checks types and the limits of single settings; `routers.py` checks which settings a router has.
"""

from __future__ import annotations

import math

from experiments.config.block_sizes import hidden_width
from experiments.config.capacity_checks import check_capacity, check_groups
from experiments.config.cooldown import check_cooldown
from experiments.config.data_checks import check_data
from experiments.config.init_checks import check_init
from experiments.config.limits import MAX_LAYERS
from experiments.config.multiples import divisors, next_multiple, rounded_up
from experiments.config.objectives import check_objective
from experiments.config.placement import fewest_layers, named_blocks
from experiments.config.repa import check_repa
from experiments.config.router_sizes import mixes_blocks
from experiments.config.routers import ROUTERS
from experiments.config.routing_checks import check_axes
from experiments.config.sampler_rows import require_steps
from experiments.config.schema import RunConfig
from experiments.config.text_stream import streams
from experiments.config.transfer_checks import check_gates, check_head_size, check_rotary, check_transfer
from experiments.config.values import shown
from experiments.errors import ConfigError

TEXT_HEAD_SIZE = 64
"""Width of an attention head of the text encoder, as in `experiments.models.embed`."""


WORKING_VALUES = {
    "gating": "routing.gating=softmax",
    "expert": "routing.expert=gelu",
    "expert_factor": "routing.expert_factor=4",
    "group_images": "routing.group_images=1, or batch",
    "top_k": "routing.top_k=2",
    "capacity_factor": "routing.capacity_factor=2",
    "eval_capacity_factor": "routing.eval_capacity_factor=same, or 2",
    "shared_factor": "routing.shared_factor=0 for none",
}


def check_config(config: RunConfig) -> None:
    """Returns when all settings fit each other. Raises `ConfigError` for the first that does not."""
    check_data(config)
    check_objective(config)
    require_steps(config.eval.sample_steps, config.flow.objective, "eval.sample_steps=")
    _check_backbone(config)
    _check_batches(config)
    check_transfer(config)
    check_cooldown(config)
    check_init(config)
    check_repa(config)
    if config.routing.name != "dense":
        _check_router(config)
        _check_experts(config)
        check_axes(config)
        check_gates(config)
        check_groups(config)
        for stream in streams(config):
            if stream.routed:
                check_capacity(stream)
    _check_layout(config)


def check_trained(config: RunConfig) -> None:
    """Raises `ConfigError` for a router whose runs are not trained, but made of finished ones."""
    name = config.routing.name
    if not ROUTERS[name].trained:
        raise ConfigError(
            f"routing.name={name} is not trained: its experts are the feed-forwards of finished dense runs.",
            "Make such a run with `ecdit merge RUN RUN OUT`, or use routing.name=expert_choice.",
        )


def _check_backbone(config: RunConfig) -> None:
    model = config.model
    check_head_size(config)
    if model.width % (2 * model.num_heads):
        raise ConfigError(
            f"model.width={model.width} does not divide into model.num_heads={model.num_heads} heads of even size.",
            f"Use model.width={next_multiple(model.width, 2 * model.num_heads)}.",
        )
    check_rotary(config)
    _require_divisible("model.num_heads", model.num_heads, "model.num_kv_heads", model.num_kv_heads)
    _require_divisible("data.image_size", config.data.image_size, "model.patch_size", model.patch_size)
    if hidden_width(config, model.ffn_factor) < 1:
        raise ConfigError(
            f"model.ffn_factor={model.ffn_factor:g} leaves no hidden width.",
            f"Use model.ffn_factor={rounded_up(1 / model.width)}.",
        )
    num_text_heads = max(1, model.text_width // TEXT_HEAD_SIZE)
    if model.text_width % num_text_heads:
        raise ConfigError(
            f"model.text_width={model.text_width} is not divisible by the {num_text_heads} heads of the text encoder.",
            f"Use model.text_width={next_multiple(model.text_width, TEXT_HEAD_SIZE)}.",
        )


def _check_batches(config: RunConfig) -> None:
    train, parallel = config.train, config.parallel
    passes = parallel.world * train.accumulation
    if train.batch_images % passes:
        raise ConfigError(
            f"train.batch_images={train.batch_images} is not divisible by parallel.world={parallel.world} x "
            f"train.accumulation={train.accumulation}.",
            f"Use train.batch_images={next_multiple(train.batch_images, passes)}.",
        )


def _check_router(config: RunConfig) -> None:
    """Checks the settings that this router requires, and those that can only have one value with it."""
    routing, row = config.routing, ROUTERS[config.routing.name]
    for key in row.needed:
        if getattr(routing, key) is None:
            working = f"routing.{key}={row.fixed[key].value}" if key in row.fixed else WORKING_VALUES[key]
            raise ConfigError(f"routing.{key}=None: {routing.name} needs a value.", f"Use {working}.")
    for key, fixed in row.fixed.items():
        value = getattr(routing, key)
        if value != fixed.value:
            others = (other.name for other in ROUTERS.values() if other.top_k is not None and key not in other.fixed)
            raise ConfigError(
                f"routing.{key}={value} {fixed.refusal.format(name=routing.name)}",
                f"Use routing.{key}={fixed.value}, or routing.name={next(others)}.",
            )


def _check_experts(config: RunConfig) -> None:
    routing, model = config.routing, config.model
    if routing.num_experts < 1:
        raise ConfigError(
            f"routing.num_experts=0 does not fit {routing.name}.", "Use routing.num_experts=8, or routing.name=dense."
        )
    if routing.top_k is not None and routing.top_k > routing.num_experts:
        raise ConfigError(
            f"routing.top_k={routing.top_k} is more than routing.num_experts={routing.num_experts}.",
            f"Use routing.top_k={routing.num_experts}, or routing.num_experts={routing.top_k}.",
        )
    _check_placement(config)
    if routing.expert_factor is not None and hidden_width(config, routing.expert_factor) < 1:
        raise ConfigError(
            f"routing.expert_factor={routing.expert_factor:g} leaves no hidden width.",
            f"Use routing.expert_factor={rounded_up(1 / model.width)}.",
        )


def _check_placement(config: RunConfig) -> None:
    """Checks that `model.sparse_layers` means at least one block, and only blocks that the model has."""
    placement, num_layers = config.model.sparse_layers, config.model.num_layers
    enough = fewest_layers(placement)
    way_out = f"Use model.sparse_layers=all{f', or model.num_layers={enough}' if enough <= MAX_LAYERS else ''}."
    missing = [block for block in named_blocks(placement) if block >= num_layers]
    if missing:
        raise ConfigError(
            f"model.sparse_layers={shown(placement)} names block {missing[0]}, but the blocks of "
            f"model.num_layers={num_layers} are 0 to {num_layers - 1}.",
            way_out,
        )
    if not config.sparse_layer_indices:
        raise ConfigError(
            f"model.num_layers={num_layers} with model.sparse_layers={placement} has no sparse layer.", way_out
        )


def _check_layout(config: RunConfig) -> None:
    parallel = config.parallel
    if parallel.expert_parallel > 1 and mixes_blocks(config):
        raise ConfigError(
            f"parallel.expert_parallel={parallel.expert_parallel} does not work with routing.name="
            f"{config.routing.name}: every process holds all of its experts, which are small.",
            "Use parallel.expert_parallel=1.",
        )
    for key in ("num_experts", "text_experts"):
        number = getattr(config.routing, key)
        if number % parallel.expert_parallel:
            raise ConfigError(
                f"routing.{key}={number} is not divisible by parallel.expert_parallel={parallel.expert_parallel}.",
                f"Use routing.{key}={next_multiple(number, parallel.expert_parallel)}, "
                f"or parallel.expert_parallel={math.gcd(number, parallel.expert_parallel)}.",
            )
    if parallel.expert_parallel > parallel.world:
        raise ConfigError(
            f"parallel.expert_parallel={parallel.expert_parallel} is more than parallel.world={parallel.world}.",
            f"Use parallel.world={parallel.expert_parallel}, or parallel.expert_parallel={parallel.world}.",
        )
    _require_divisible("parallel.world", parallel.world, "parallel.expert_parallel", parallel.expert_parallel)
    if parallel.zero_stage == 0 and config.train.precision == "bf16":
        raise ConfigError(
            "train.precision=bf16 does not work with parallel.zero_stage=0, which keeps no fp32 weights beside those "
            "in bf16.",
            "Use parallel.zero_stage=1, or train.precision=fp32.",
        )
    if parallel.expert_parallel > 1 and parallel.zero_stage == 3:
        raise ConfigError(
            f"parallel.zero_stage=3 does not work with parallel.expert_parallel={parallel.expert_parallel}: ZeRO-3 "
            "spreads the experts itself.",
            "Use parallel.zero_stage=2, or parallel.expert_parallel=1.",
        )


def _require_divisible(key: str, value: int, by_key: str, by: int) -> None:
    if value % by:
        divisor = divisors(value, by - 1)[-1]
        raise ConfigError(
            f"{key}={value} is not divisible by {by_key}={by}.",
            f"Use {key}={next_multiple(value, by)}, or {by_key}={divisor}.",
        )
