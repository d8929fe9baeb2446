"""Computes what autograd saves during a forward pass by arithmetic, tensor by tensor in the order of the modules.

What attention without a fused kernel would save in addition is not counted. `parallel.activation_checkpointing` keeps
only each block's input and routing decision; the backward pass computes the rest again, one block at a time.

Everything is in bytes. Legend: d width, T tokens that training keeps, L caption length, F hidden width, P slots of all
experts together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from experiments.config.block_sizes import head_width, hidden_width
from experiments.config.blocks import BlockRow, block_of
from experiments.config.budget import slots_per_image
from experiments.config.data_sets import captions_of
from experiments.config.repa import FEATURES, projector_numbers
from experiments.config.router_sizes import (
    mixes_blocks,
    mixes_tokens,
    router_input_width,
    router_tensors,
    soft_slots,
)
from experiments.config.schema import RunConfig
from experiments.config.text_stream import TokenStream, has_text_output, streams

FLOAT32 = 4
INDEX = 8

Precision = Literal["fp32", "bf16"]


class Activations(NamedTuple):
    """Holds what the activations of one image take, in bytes."""

    saved: float
    """The bytes that are saved at the end of the forward pass."""
    recomputed: float
    """The bytes that a recomputed block saves beyond its input; 0 without activation checkpointing."""
    widest_gradient: float
    """The gradient of one hidden layer; kernels over all experts at once add what they compute again."""
    exchanged: float
    """All-to-all buffers of expert parallelism: slots sent out and back, on both sides. They do not outlive the layer.

    Without a capacity limit, a process receives as many slots as it sends only on average over the processes.
    """


def activations(config: RunConfig, width: int, on_accelerator: bool) -> Activations:
    """Returns the bytes of one image's activations, with `width` bytes per element that is not always fp32."""
    config = _at_first_step(config)
    slots = max((max(_slots_by_layer(stream).values(), default=0.0) for stream in streams(config)), default=0.0)
    fast = config.train.is_fast
    kernels = fast and on_accelerator  # fused kernels save only their inputs, no intermediate results
    again = fast and not (on_accelerator and config.routing.capacity_factor is None)  # grouped products keep both sides
    # The kernels hold gradients of both sides of the activation (in one buffer with GELU), and one side computed again
    # for half of the experts. A CPU works on a few experts at a time, so only the largest gradient counts.
    at_once = (3.5 if config.routing.expert == "swiglu" else 1.5) if kernels else 1
    blocks = _block_bytes(config, width, again, kernels)
    if config.parallel.activation_checkpointing:
        saved = sum(_kept_bytes(config, width, layer) for layer in range(config.model.num_layers))
        recomputed = max(blocks) - width * _tokens_between_blocks(config) * config.model.width
    else:
        saved, recomputed = sum(blocks), 0.0
    return Activations(
        saved=captions_of(config).saved_bytes(config.model, width) + saved + _ends_bytes(config, width, kernels),
        recomputed=recomputed,
        widest_gradient=width
        * max(_widest_dense(config), at_once * slots * hidden_width(config, _expert_factor(config))),
        exchanged=4 * slots * config.model.width * width if config.parallel.expert_parallel > 1 else 0.0,
    )


def working_bytes(config: RunConfig, on_accelerator: bool) -> int:
    """Returns the bytes of one element in working precision.

    `auto` counts as fp32 with ZeRO-0, as bf16 on an accelerator, and as fp32 on a CPU: the larger of the two that it
    may become there.
    """
    setting = config.train.precision
    bf16 = on_accelerator and config.parallel.zero_stage != 0
    precision: Precision = ("bf16" if bf16 else "fp32") if setting == "auto" else setting
    return 2 if precision == "bf16" else FLOAT32


def exchanged_slots(config: RunConfig) -> float:
    """Returns how many slots of one image all routed layers send to the processes that hold their experts."""
    return sum(sum(_slots_by_layer(stream).values()) for stream in streams(config))


def _block_bytes(config: RunConfig, width: int, again: bool, kernels: bool) -> list[float]:
    """Returns the bytes that autograd saves in each block for one image."""
    blocks = [_attention_bytes(config, layer, width, kernels) for layer in range(config.model.num_layers)]
    for stream in streams(config):
        tokens, slots = stream.num_tokens(config.num_train_tokens), _slots_by_layer(stream)
        for layer in {*stream.dense, *stream.routed}:
            blocks[layer] += (
                _sparse_bytes(stream.config, tokens, width, slots[layer], again, kernels)
                if layer in slots
                else _dense_bytes(config, tokens, width, kernels)
            )
    return blocks


def _tokens_between_blocks(config: RunConfig) -> int:
    """Returns the tokens of one image that a block hands on: those of the image, and of the text where it changes."""
    text = config.data.caption_length if block_of(config).has_text_stream else 0
    return config.num_train_tokens + text


def _kept_bytes(config: RunConfig, width: int, layer: int) -> float:
    """Returns the bytes that a checkpointed block keeps for one image.

    That is its input and, in a routed block, the routing decision, which the training loop holds until the step: the
    token and the combine weight of every slot, and the logits.
    """
    kept = float(width * _tokens_between_blocks(config) * config.model.width)
    filled = 1 if config.routing.top_k is not None and config.routing.capacity_factor is not None else 0
    for stream in streams(config):
        slots = _slots_by_layer(stream).get(layer)
        if slots is not None:
            logits = FLOAT32 * stream.num_tokens(config.num_train_tokens) * stream.config.routing.num_experts
            pairs = logits / FLOAT32 if mixes_tokens(config) else slots
            kept += (INDEX + FLOAT32 + filled) * pairs + logits
    return kept


def _attention_bytes(config: RunConfig, layer: int, width: int, kernels: bool) -> float:
    """Returns the bytes saved by all attention of one layer, with the norm and modulation before it.

    Attention is assumed to be fused, so that no attention matrix is saved. Self-attention saves its input, the norm of
    it, the modulated norm, the query, the output of the heads, the output (for the gradient of its gate), key and
    value. Cross-attention saves its input, the query, the output of the heads, key and value. Where queries and keys
    are normed, they are saved before and after it. A network of the block's own for the modulation saves its input.
    The fused `kernels` save neither the norm of the input nor means and deviations of norms.
    """
    model, row, T = config.model, block_of(config), config.num_train_tokens
    if row.has_text_stream:
        return _joint_attention_bytes(config, layer, width, kernels)
    kv = model.width * model.num_kv_heads // model.num_heads
    crosses = row.cross_attends
    attended, queries = (T + config.data.caption_length, 2 * T) if crosses else (T, T)  # of both attentions together
    # Without a fused kernel, RMS norm works on fp32: it saves its result, and in 16 bits a copy in place of its input.
    copies = _copies_of_norm(row, width, kernels)
    normed = 0 if row.qk_norm == "off" or copies == 2 else 1
    numbers = (T * 5 + queries * 2 if crosses else T * 6) * model.width
    numbers += (queries * normed * model.width) + (2 + normed) * attended * kv
    moments = {"off": 0, "rms": 1}.get(row.qk_norm, 2)
    norms = 2 * T + moments * (queries * model.num_heads + attended * model.num_kv_heads)
    modulation = (7 if row.shared_modulation else 8) * model.width
    if kernels:
        numbers, norms, modulation = numbers - T * model.width, 0, modulation - model.width
    in_fp32 = copies * (queries * model.width + attended * kv) + (2 if crosses else 1) * T * model.num_heads
    return width * (numbers + norms + modulation) + FLOAT32 * in_fp32


def _joint_attention_bytes(config: RunConfig, layer: int, width: int, kernels: bool) -> float:
    """Returns the bytes saved by joint attention of image and text tokens, as `_attention_bytes` does.

    Both streams save their input, its norm, the modulated norm, and their output. Queries, keys and values, and what
    the heads return, are saved joined; the last map of each stream saves its part of the latter as a copy.
    """
    model, row, T, L = config.model, block_of(config), config.num_train_tokens, config.data.caption_length
    kv, both = model.width * model.num_kv_heads // model.num_heads, T + L
    mapped = both if has_text_output(config, layer) else T
    copies = _copies_of_norm(row, width, kernels)
    normed = 0 if row.qk_norm == "off" or copies == 2 else 1
    numbers = ((4 if kernels else 5) * both + 2 * mapped) * model.width + 2 * both * kv
    numbers += normed * both * (model.width + 2 * kv)  # keys are a view of keys and values
    moments = {"off": 0, "rms": 1}.get(row.qk_norm, 2)
    norms = 0 if kernels else 2 * both + moments * both * (model.num_heads + model.num_kv_heads)
    of_text = 7 if has_text_output(config, layer) else (3 if kernels else 1)
    modulation = (8 + of_text - (2 if kernels else 0)) * model.width
    in_fp32 = copies * both * (model.width + kv) + both * model.num_heads
    return width * (numbers + norms + modulation) + FLOAT32 * in_fp32


def _copies_of_norm(row: BlockRow, width: int, kernels: bool) -> int:
    return (1 if width == FLOAT32 else 2) if row.qk_norm == "rms" and not kernels else 0


def _dense_bytes(config: RunConfig, tokens: int, width: int, kernels: bool) -> float:
    """Returns the bytes saved by a dense feed-forward: `_around_bytes`, and both sides of the activation function."""
    hidden = hidden_width(config, config.model.ffn_factor)
    sides = 4 if block_of(config).activation == "swiglu" else 2
    return _around_bytes(config, tokens, width, kernels) + width * tokens * sides * hidden


def _around_bytes(config: RunConfig, tokens: int, width: int, kernels: bool) -> float:
    """Returns what any feed-forward saves: input, its norm (not with `kernels`), modulated norm, and gated output."""
    T, d = tokens, config.model.width
    return float(width * 3 * T * d if kernels else width * (T * (4 * d + 2) + d))


def _sparse_bytes(config: RunConfig, tokens: int, width: int, slots: float, again: bool, kernels: bool) -> float:
    """Returns the bytes saved by a routed feed-forward: inputs, both sides of the activation, and outputs of all slots.

    With `again` only the input of the activation is kept, and its output is computed again. The outputs of slots are
    kept for the gradients of gates, which a fixed choice does not have. An unconditional expert takes tokens from the
    others, and is not counted beside them.
    """
    T, d, routing = tokens, config.model.width, config.routing
    sides = 4 if routing.expert == "swiglu" else 2
    hidden, shared = (hidden_width(config, factor or 0) for factor in (routing.expert_factor, routing.shared_factor))
    if mixes_blocks(config):  # the block's input, what it is multiplied by, and both sides of the linear experts
        router = FLOAT32 * T * 3 * routing.num_experts + 20 * slots
        return _dense_bytes(config, T, width, kernels) + router + width * 2 * d * (T + slots)
    ends = 2 * d if router_tensors(config) else d
    experts = slots * width * (ends + (sides // 2 if again else sides) * hidden)
    if routing.expert_bias and kernels and not again:  # grouped products find the bias of a slot by its expert's number
        experts += INDEX * slots
    shared_bytes = width * T * (sides * shared + 2 * d) if shared else 0.0
    router = _mixture_bytes(config, width) if mixes_tokens(config) else _router_bytes(config, T, width, slots, kernels)
    return _around_bytes(config, T, width, kernels) + router + experts + shared_bytes


def _mixture_bytes(config: RunConfig, width: int) -> float:
    """Returns what soft MoE saves of an image beside its slots, with the image's share of what it saves of a batch.

    Those are the normalised tokens with their norms, both softmaxes, their copies in 16 bits, and the pairs of the
    statistics; of a batch, the vectors of the slots before and after their scale. In 16 bits, fp32 copies come first.
    """
    T, d, slots, copies = config.num_train_tokens, config.model.width, soft_slots(config), 1 if width < FLOAT32 else 0
    tokens = FLOAT32 * T * (d * (1 + copies) + 2)
    softmaxes = 2 * T * slots * (FLOAT32 + width * copies)
    pairs = (INDEX + 2 * FLOAT32) * T * config.routing.num_experts
    return tokens + softmaxes + pairs + FLOAT32 * d * slots * (2 + copies) / config.micro_batch_images


def _router_bytes(config: RunConfig, tokens: int, width: int, slots: float, kernels: bool) -> float:
    """Returns what the router and the sum over experts save, in fp32: affinities, and indices and weights of slots.

    What the router reads is saved too where the experts do not read the same: in bf16 as an fp32 copy, unless `kernels`
    multiply 16-bit factors. The hidden layers of the `mlp` form, normed tokens of `cosine` and a capacity predictor
    come on top. What an image has once and not for every token is left out, and so are copies of weights.
    """
    T, d, routing = tokens, config.model.width, config.routing
    if not router_tensors(config):
        return 20 * slots
    reads_tokens = routing.input in ("modulated", "plain_time")
    copied = width < FLOAT32 and not (kernels and routing.form == "linear")
    numbers = {"linear": 0, "mlp": 2 * d, "cosine": router_input_width(config)}[routing.form] if reads_tokens else 0
    numbers += d * copied if routing.input == "modulated" else 0
    numbers += (1 if routing.top_k is None else 3) * routing.num_experts
    if routing.predictor_loss_weight:
        numbers += (3 if width < FLOAT32 else 2) * d + 2 * routing.num_experts
    beside = 2 * d * (FLOAT32 if copied else width) if routing.input == "plain_time" else 0
    return T * (FLOAT32 * numbers + beside) + 20 * slots


def _at_first_step(config: RunConfig) -> RunConfig:
    """Returns the config with the capacity of the first step, the largest of training where the capacity falls."""
    routing = config.routing
    if not routing.capacity_warmup_images:
        return config
    every_expert = routing.model_copy(update={"capacity_factor": float(routing.num_experts)})
    return config.model_copy(update={"routing": every_expert})


def _slots_by_layer(stream: TokenStream) -> dict[int, float]:
    """Returns the slots of one image in each routed layer; with a capacity limit this includes empty slots."""
    config, tokens = stream.config, stream.num_tokens(stream.config.num_train_tokens)
    slots = {
        factor: slots_per_image(config, tokens, training=True, layer_factor=factor) for factor in set(stream.factors)
    }
    return {layer: slots[factor] for layer, factor in zip(stream.routed, stream.factors, strict=True)}


def _ends_bytes(config: RunConfig, width: int, kernels: bool) -> float:
    """Returns what the patch and time embeddings and the head save, with the difference that the loss squares.

    The bound of a learned variance keeps 15 numbers and two comparisons of a byte more for each value of a token. The
    values that the head returns are alive beside it, as part of the model's output.
    """
    T, d = config.num_train_tokens, config.model.width
    patch = config.model.patch_size**2 * config.data.channels
    repa = width * projector_numbers(config) + (FLOAT32 * T * 3 * FEATURES if config.train.repa_weight else 0)
    loss = FLOAT32 + (15 * FLOAT32 + 2 if config.flow.learned_sigma else 0)
    return (
        width * (T * (patch + head_width(config) + (2 if kernels else 3) * d) + 256 + 5 * d) + loss * T * patch + repa
    )


def _widest_dense(config: RunConfig) -> float:
    tokens = max(stream.num_tokens(config.num_train_tokens) for stream in streams(config))
    return tokens * hidden_width(config, config.model.ffn_factor)


def _expert_factor(config: RunConfig) -> float:
    return config.routing.expert_factor or 0.0
