"""Computes the parameters and FLOPs of a config by arithmetic, without building a model.

Every part is named as in the real module, and a test compares it with that module. FLOPs follow
`torch.utils.flop_counter`: a product of [m, k] and [k, n] is 2 m k n, pointwise work is free. The products of auxiliary
losses and of DeepSpeed's masks are left out.

Activated parameters are the weights one token passes through on average: with experts that choose, f_c experts
(EC-DIT, section 3: activated = dense + sparse [(f_c - 1) 8 d^2 + E d]); with tokens that choose, top_k experts, or f_c
where the capacity is the tighter limit.

Legend: d width, T tokens of an image, L caption length, F hidden width, E experts, C slots of an expert in a group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from experiments.config.block_sizes import (
    blocks_flops,
    blocks_params,
    dense_flops,
    expert_matrix_elements,
    head_width,
    hidden_width,
    num_expert_matrices,
    stream_params,
)
from experiments.config.blocks import block_of
from experiments.config.data_sets import captions_of
from experiments.config.repa import feature_flops, projector_flops, projector_params
from experiments.config.router_sizes import (
    mixes_blocks,
    mixes_tokens,
    router_flops,
    router_flops_without_gradient,
    soft_slots,
)
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.config.text_stream import TokenStream, streams

TIME_FREQUENCIES = 256
"""The number of sinusoids that embed the timestep (DiT)."""
PRIOR_GRID = 100
"""The number of noise levels on which Switch-DiT's choices are matched with its prior (`routing/switch_dit.py`)."""
BLOCK_PARTS = (
    "attention", "cross_attention", "modulation", "ffn", "experts", "shared_experts", "unconditional_expert", "router",
)  # fmt: skip
"""The parts of a block that take FLOPs."""


@dataclass(frozen=True)
class Budget:
    """Holds the cost of a model. FLOPs are per image; `train_` counts forward and backward over the kept tokens."""

    params_by_part: dict[str, int]
    active_by_part: dict[str, int]
    flops_per_image: int
    train_flops_per_image: int

    @property
    def params_total(self) -> int:
        """Returns the number of all parameters, experts included."""
        return sum(self.params_by_part.values())

    @property
    def params_active(self) -> int:
        """Returns the number of parameters that one token passes through on average."""
        return sum(self.active_by_part.values())


def budget(config: RunConfig) -> Budget:
    """Returns the cost of `config`; this needs no torch and allocates no weights."""
    params = _params_by_part(config)
    active = dict(params)
    if config.sparse_layer_indices:
        active["experts"] = sum(_active_experts(stream) for stream in streams(config))
        active["unconditional_expert"] = 0  # it takes the place of the others, for images without a caption
    forward = _flops_by_part(config, config.num_tokens, training=False)
    training = _flops_by_part(config, config.num_train_tokens, training=True)
    training["repa"] = projector_flops(config)
    # The backward pass has two products for each one of the forward pass, with respect to inputs and to weights. The
    # first layers need no gradient of their inputs (patches, timesteps, features), which saves one product each.
    inputs_without_gradient = training["embed"] + 2 * TIME_FREQUENCIES * config.model.width
    inputs_without_gradient += captions_of(config).flops_without_gradient(config.model)
    inputs_without_gradient += 2 * training["prior"]  # its choices have no gradient at all
    if config.sparse_layer_indices:
        for stream in streams(config):
            unneeded = router_flops_without_gradient(stream.config, stream.num_tokens(config.num_train_tokens))
            inputs_without_gradient += len(stream.routed) * unneeded
    return Budget(
        params_by_part=params,
        active_by_part=active,
        flops_per_image=sum(forward.values()),
        train_flops_per_image=3 * sum(training.values()) - inputs_without_gradient + feature_flops(config),
    )


def recomputed_flops_per_image(config: RunConfig) -> int:
    """Returns the FLOPs that activation checkpointing adds to training: a second forward pass of the blocks."""
    if not config.parallel.activation_checkpointing:
        return 0
    parts = _flops_by_part(config, config.num_train_tokens, training=True)
    return sum(parts[part] for part in BLOCK_PARTS)


def _active_experts(stream: TokenStream) -> int:
    """Returns the parameters of all experts through which one token of the stream passes on average."""
    experts = stream_params(stream)["experts"]
    return round(experts * experts_per_token(stream.config) / max(1, stream.config.routing.num_experts))


def experts_per_token(config: RunConfig) -> float:
    """Returns how many experts process a token on average: f_c, top_k, or the smaller where a router has both."""
    routing = config.routing
    limits = [float(routing.num_experts)]
    limits += [routing.capacity_factor] if routing.capacity_factor is not None else []
    limits += [float(routing.top_k)] if routing.top_k is not None else []
    return min(limits)


def capacity_factor(config: RunConfig, training: bool) -> float | None:
    """Returns the f_c that applies: `eval_capacity_factor` outside training unless it is 'same'."""
    routing = config.routing
    if training or routing.eval_capacity_factor == "same":
        return routing.capacity_factor
    return routing.eval_capacity_factor


def mean_factor(config: RunConfig) -> float | None:
    """Returns the mean of f_c over training, which falls linearly from E over `routing.capacity_warmup_images`."""
    factor, warmup = config.routing.capacity_factor, config.routing.capacity_warmup_images
    if factor is None or not warmup:
        return factor
    seen = min(1.0, config.total_images / warmup)  # the share of the warm-up that training reaches
    return factor + (config.routing.num_experts - factor) * (1 - seen / 2) * seen * warmup / config.total_images


def expert_capacity(num_group_tokens: int, factor: float, num_experts: int, round_up: bool) -> int:
    """Returns the slots of one expert, C = S f_c / E.

    Expert choice rounds down, so that it never spends more than f_c; token choice rounds up, as DeepSpeed does.
    The small term compensates for floating-point error, so that 64 x 0.3 / 19.2 does not lose a slot.
    """
    exact = num_group_tokens * factor / num_experts
    return math.ceil(exact - 1e-9) if round_up else math.floor(exact + 1e-9)


def compute_varies(config: RunConfig, training: bool) -> bool:
    """Says whether the expert slots that are computed depend on the tokens, so that they have to be counted.

    Beside an unconditional expert only filled slots are computed (`routing/contract.py`). Where tokens choose with
    a capacity, some stay empty outside training too.
    """
    routing = config.routing
    rule = ROUTERS[routing.name].rule if routing.name in ROUTERS else None
    if not config.sparse_layer_indices:
        return False
    follows_tokens = rule == "thresholds" or routing.capacity_schedule != "none"
    if training:
        return follows_tokens or routing.unconditional_expert or routing.capacity_warmup_images > 0
    has_empty_slots = routing.top_k is not None and capacity_factor(config, training) is not None
    return follows_tokens or routing.eval_decision != "same" or (routing.unconditional_expert and has_empty_slots)


def executed_flops_per_image(config: RunConfig, slots: float, training: bool) -> float:
    """Returns the FLOPs of an image, as planned but with `slots` expert slots over all routed layers.

    Those are the means over the images that were counted.
    """
    without_slots, per_slot = _flops_around_slots(config, training)
    return without_slots + per_slot * slots


@lru_cache(maxsize=64)
def _flops_around_slots(config: RunConfig, training: bool) -> tuple[int, int]:
    """Returns the FLOPs of an image without its expert slots, and those of a slot.

    They are remembered, as the training loop asks at every step. Training has two more products for each one of the
    forward pass.
    """
    cost, tokens = budget(config), config.num_train_tokens if training else config.num_tokens
    planned, passes = _flops_by_part(config, tokens, training), 3 if training else 1
    whole = cost.train_flops_per_image if training else cost.flops_per_image
    expert = expert_matrix_elements(config)
    return whole - passes * (planned["experts"] + planned["unconditional_expert"]), passes * 2 * expert


def _params_by_part(config: RunConfig) -> dict[str, int]:
    model, data = config.model, config.data
    d = model.width
    patch, blocks = model.patch_size**2 * data.channels, blocks_params(config)
    shared_modulation = block_of(config).shared_modulation
    of_all_blocks, of_head = (6 * d * d + 6 * d, 2 * d) if shared_modulation else (0, 2 * d * d + 2 * d)
    return {
        "embed": patch * d + d,
        "time": TIME_FREQUENCIES * d + d + d * d + d + of_all_blocks,
        "modulation": blocks["modulation"] + of_head,
        "text": sum(size for _, size in captions_of(config).encoder_sizes(model)),
        "attention": blocks["attention"],
        "cross_attention": blocks["cross_attention"],
        **_summed(stream_params(stream) for stream in streams(config)),
        "head": (d + 1) * head_width(config),
        "repa": projector_params(config),
    }


def _flops_by_part(config: RunConfig, num_tokens: int, training: bool) -> dict[str, int]:
    model, data = config.model, config.data
    d, T = model.width, num_tokens
    patch = model.patch_size**2 * data.channels
    shared_modulation = block_of(config).shared_modulation
    return {
        "embed": 2 * T * patch * d,
        "time": 2 * (TIME_FREQUENCIES * d + (7 if shared_modulation else 1) * d * d),
        "text": captions_of(config).encoder_flops(model),
        **blocks_flops(config, T),
        **_summed(_stream_flops(stream, stream.num_tokens(T), training) for stream in streams(config)),
        "prior": prior_flops(config) if training else 0,
        "head": 2 * T * d * head_width(config) + (0 if shared_modulation else 4 * d * d),
    }


def _stream_flops(stream: TokenStream, num_tokens: int, training: bool) -> dict[str, int]:
    """Returns the FLOPs by part of the feed-forwards of one kind of tokens, of which an image has `num_tokens`."""
    config, T, num_routed = stream.config, num_tokens, len(stream.routed)
    expert = expert_matrix_elements(config)
    shared = num_expert_matrices(config) * config.model.width * hidden_width(config, config.routing.shared_factor or 0)
    slots = sum(slots_per_image(config, T, training, factor) for factor in stream.factors)
    without = tokens_without_caption(config, T, training)
    slots -= without / T * slots  # the unconditional expert takes these tokens from all others
    return {
        "ffn": len(stream.dense) * dense_flops(config, T),
        "experts": round(2 * slots * expert),  # an empty slot is computed too
        "shared_experts": num_routed * 2 * T * shared,
        "unconditional_expert": round(num_routed * 2 * without * expert),
        "router": num_routed * router_flops(config, T, training),
    }


def _summed(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Returns the sums of numbers by part, in the order of the first."""
    counts: Counter[str] = Counter()
    for each in parts:
        counts.update(each)
    return dict(counts)


def prior_flops(config: RunConfig) -> int:
    """Returns the FLOPs per image of Switch-DiT's choices on a grid of noise levels, once for each micro batch."""
    if not mixes_blocks(config) or not config.routing.prior_loss_weight:
        return 0
    d = config.model.width
    embedding = 2 * (TIME_FREQUENCIES * d + d * d)
    choices = len(config.sparse_layer_indices) * router_flops(config, 1, training=True)
    return round(PRIOR_GRID * (embedding + choices) / config.micro_batch_images)


def tokens_without_caption(config: RunConfig, num_tokens: int, training: bool) -> float:
    """Returns the mean number of tokens of an image that the unconditional expert processes in one layer."""
    takes = config.routing.unconditional_expert and training
    return num_tokens * config.train.caption_dropout if takes else 0.0


def slots_per_image(config: RunConfig, num_tokens: int, training: bool, layer_factor: float = 1.0) -> float:
    """Returns the expert slots that one layer computes per image, over all its experts, with its factor on f_c.

    Without a capacity limit there are top_k slots for each token. With a limit, empty slots count, as they are computed
    too. Where the capacity falls in training, the mean over all of training counts.
    """
    routing = config.routing
    factor = mean_factor(config) if training else capacity_factor(config, training)
    if factor is None:
        return float(num_tokens * (routing.top_k or 1))
    if mixes_tokens(config):
        return float(soft_slots(config))
    factor = min(factor * layer_factor, float(routing.num_experts))
    if ROUTERS[routing.name].rule in ("pairs", "thresholds") or routing.capacity_schedule != "none":
        return num_tokens * factor  # pairs are counted over the batch, not in slots of an expert
    batch = config.micro_batch_images if training else config.eval.batch_images
    if training and routing.group_images == "all":
        batch *= config.parallel.world
    group = min(routing.group_images, batch) if isinstance(routing.group_images, int) else batch
    whole, rest = divmod(batch, group)  # in evaluation a last group may be smaller, and has at least one slot

    def capacity(images: int) -> int:
        return expert_capacity(images * num_tokens, factor, routing.num_experts, round_up=routing.top_k is not None)

    slots = whole * capacity(group) + (max(1, capacity(rest)) if rest else 0)
    return slots * routing.num_experts / batch
