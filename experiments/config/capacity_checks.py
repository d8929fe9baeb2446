"""Checks the routing groups of a run and the capacity of its experts, C = S f_c / E, in training and in evaluation.

With less than one slot a layer would output zeros without an error (EC-DIT, arXiv 2410.02098, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from experiments.config.budget import capacity_factor, expert_capacity
from experiments.config.multiples import divisors, next_multiple, rounded_up
from experiments.config.schema import RunConfig
from experiments.config.text_stream import TokenStream
from experiments.errors import ConfigError


def check_groups(config: RunConfig) -> None:
    """Checks that routing groups divide a training batch evenly; in evaluation the last group may be smaller."""
    group, local = config.routing.group_images, config.micro_batch_images
    if isinstance(group, int) and local % group:
        batch = next_multiple(local, group) * config.parallel.world * config.train.accumulation
        raise ConfigError(
            f"routing.group_images={group} does not divide the {local} images that one process takes at a time.",
            f"Use train.batch_images={batch}, or routing.group_images={math.gcd(local, group)}.",
        )


def check_capacity(stream: TokenStream) -> None:
    """Checks that an expert has at least one slot in every group and layer, and no more slots than there are tokens."""
    config, most = stream.config, max(stream.factors)
    experts = f"routing.{'text' if stream.is_text else 'num'}_experts={config.routing.num_experts}"
    for training in (True, False):
        own = not training and config.routing.eval_capacity_factor != "same"
        key = "routing.eval_capacity_factor" if own else "routing.capacity_factor"
        factor = capacity_factor(config, training)
        if factor is None:
            continue
        if factor * most > config.routing.num_experts:
            in_layer = f" in the layer with the factor {most:g}" if most > 1 else ""
            raise ConfigError(
                f"{key}={factor:g} is more than {experts}{in_layer}: an expert would have more slots than there are "
                "tokens.",
                f"Use {key}={math.floor(config.routing.num_experts / most * 10_000) / 10_000:g}.",
            )
        tokens = stream.num_tokens(config.num_train_tokens if training else config.num_tokens)
        for setting, images in _smallest_groups(config, training):
            _require_a_slot(stream, key, factor, setting, images, tokens)


def _require_a_slot(stream: TokenStream, key: str, factor: float, setting: str, images: int, tokens: int) -> None:
    """Raises `ConfigError` where an expert has no slot in the smallest group, of `images` with `tokens` tokens each.

    `setting` is the key that makes this group larger.
    """
    config, layer_factor = stream.config, min(stream.factors)
    num_experts, group_tokens = config.routing.num_experts, images * tokens
    factor_there, round_up = factor * layer_factor, config.routing.top_k is not None
    if expert_capacity(group_tokens, factor_there, num_experts, round_up) >= 1:
        return
    if stream.is_text:
        raise ConfigError(
            f"routing.text_experts={num_experts} leaves an expert without a slot with {key}={factor:g} and "
            f"{group_tokens} text tokens per group.",
            f"Use routing.text_experts={math.floor(group_tokens * factor_there)}.",
        )
    enough = math.ceil(num_experts / (factor_there * tokens))
    if setting == "routing.group_images":
        local = config.micro_batch_images
        enough = next((each for each in divisors(local, local) if each >= enough), enough)
    elif setting == "train.batch_images":
        enough *= config.parallel.world * config.train.accumulation
    elif setting == "eval.images":
        enough = next_multiple(config.eval.images, config.eval.batch_images)
    least = num_experts / (group_tokens * layer_factor)
    where = f"{num_experts} experts and {group_tokens} tokens per group"
    where += f" in the layer with the factor {layer_factor:g}" if layer_factor != 1 else ""
    if least * max(stream.factors) > num_experts:  # no factor is large enough for this layer and fits the others
        raise ConfigError(f"{key}={factor:g} leaves an expert without a slot with {where}.", f"Use {setting}={enough}.")
    raise ConfigError(
        f"{key}={factor:g} leaves an expert without a slot: it must be at least {rounded_up(least)} with {where}.",
        f"Use {key}={rounded_up(least)}, or {setting}={enough}.",
    )


def _smallest_groups(config: RunConfig, training: bool) -> Iterator[tuple[str, int]]:
    """Yields, for every kind of batch, the setting that decides its smallest routing group, and that group's images."""
    group, evaluation = config.routing.group_images, config.eval
    batches = {
        "eval.batch_images": min(evaluation.images, evaluation.batch_images),
        "eval.images": evaluation.images % evaluation.batch_images,
        "eval.sample_images": evaluation.sample_images,
    }
    if training:
        batches = {"train.batch_images": config.micro_batch_images}
    for setting, images in batches.items():
        if not images:
            continue
        size = min(group, images) if isinstance(group, int) else images
        yield (setting if size != group else "routing.group_images"), images % size or size
