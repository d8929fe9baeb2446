"""Memory of one training process by arithmetic: what the engine holds, and the peaks of an iteration.

Counted is what `training/engine.py` and DeepSpeed's ZeRO 1 and 2 really keep: flat parameters in working precision, the
process's share of the fp32 master weights, of the moving average and of the optimizer state, gradients, DeepSpeed's
reduction bucket, and the tensors that autograd saves for the backward pass, layer by layer as the modules are written.
Tests hold the sums against measured tensors and against the resident set of a real run. Not counted: what an attention
kernel without a fused form would add, and buffers of the all-to-all of expert parallelism.

Everything is in bytes. Legend: d width, T tokens that training keeps, L caption length, F hidden width, P slots of all
experts together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from experiments.config.budget import budget, capacity_factor, hidden_width, precomputed_features, slots_per_image
from experiments.config.schema import RunConfig

FLOAT32 = 4
GIB = 2**30
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`. An accelerator holds all of it; on a CPU only what is written to becomes real."""
FULLEST_EXPERT = 2.4
"""Without a limit on slots every expert has as many as the fullest one needs: so many times the mean. Measured at the
first steps of DiT-MoE routing with 8 experts (2,048 tokens, top 2), before the balance loss has worked."""
PROCESS_BYTES = 400 * 2**20
"""Resident set of a training process on a CPU before it holds a tensor: Python, torch, DeepSpeed, loaded kernels."""
HOST_SLACK = 1.1
"""Resident set over live tensors on a CPU: what the allocator keeps between tensors of changing sizes."""
CONTEXT_BYTES = 700 * 2**20
"""Of an accelerator, outside any tensor: driver context, kernels, the libraries' workspaces. An assumption."""
ACCELERATOR_SLACK = 1.05
"""Reserved over allocated memory of an accelerator. An assumption."""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Memory:
    """What one process holds, in bytes; the first four always, the others at some point of an iteration."""

    parameters: int
    """In working precision; DeepSpeed's flat tensor, of which the module's parameters are views."""
    master_weights: int
    """This process's fp32 share. DeepSpeed keeps it in fp32 training too."""
    moving_average: int
    optimizer_state: int
    batch: int
    """The images, noise and captions of all accumulation steps."""
    gradients: int
    """As the backward pass leaves them: all with ZeRO-1, the share with ZeRO-2."""
    gradient_partition: int
    """This process's share, copied out of the bucket."""
    reduction_bucket: int
    """The buffer that gradients are reduced in, where it is not the memory of the gradients themselves."""
    activations: int
    """Saved for the backward pass of one micro batch."""
    backward_scratch: int
    """The widest gradient of an activation."""
    optimizer_scratch: int
    """The fp32 gradient of the step and the optimizer's temporaries."""
    checkpoint: int
    """All that is saved in fp32, gathered in host memory by the process that writes."""
    validation_set: int
    """In host memory."""
    accumulates: bool
    on_accelerator: bool

    @property
    def persistent(self) -> int:
        """Held from the first step to the last."""
        return self.parameters + self.master_weights + self.moving_average + self.optimizer_state

    @property
    def backward_peak(self) -> int:
        """While activations turn into gradients, and while those are reduced."""
        earlier = self.gradients if self.accumulates else 0
        activations = self.activations + self.backward_scratch + earlier
        return self.persistent + self.batch + self.reduction_bucket + max(activations, self._reduced)

    @property
    def step_peak(self) -> int:
        """While the optimizer works."""
        return self.persistent + self.batch + self.optimizer_scratch

    @property
    def tensors_peak(self) -> int:
        """The most that live tensors take at any point of an iteration, on the device that trains."""
        return max(self.backward_peak, self.step_peak)

    @property
    def peak(self) -> int:
        """Of one process on the device that trains: what must fit. On a CPU saving counts too."""
        if self.on_accelerator:
            return CONTEXT_BYTES + round(ACCELERATOR_SLACK * self.tensors_peak)
        saving = self.persistent + self.batch + self.checkpoint
        return PROCESS_BYTES + self.validation_set + max(round(HOST_SLACK * self.tensors_peak), saving)

    @property
    def host_peak(self) -> int:
        """Of the process that writes checkpoints, in host memory; the same as `peak` on a CPU."""
        return PROCESS_BYTES + self.validation_set + self.checkpoint if self.on_accelerator else self.peak

    @property
    def peak_gib(self) -> float:
        """`peak` in GiB."""
        return self.peak / GIB

    def by_part(self) -> dict[str, int]:
        """Every counted part by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: count for name, count in parts.items() if not isinstance(count, bool)}

    @property
    def _reduced(self) -> int:
        return self.gradients + self.gradient_partition


def memory(config: RunConfig, on_accelerator: bool) -> Memory:
    """What each process of `config` holds with its `parallel`, `train.accumulation` and `train.precision`.

    `auto` counts as bf16 on an accelerator and as fp32 on a CPU, which is the larger of what it may become there.
    """
    width = working_bytes(config, on_accelerator)
    params, parallel = budget(config).params_by_part, config.parallel
    total = sum(params.values())
    held = total - params["experts"] + params["experts"] // parallel.expert_parallel
    share = -(-total // parallel.world)
    two_states = config.optim.name == "adamw" or config.optim.momentum > 0
    all_reduced = parallel.zero_stage == 1 or not on_accelerator
    images = micro_batch_images(config)
    return Memory(
        parameters=held * width,
        master_weights=share * FLOAT32,
        moving_average=share * FLOAT32,
        optimizer_state=share * FLOAT32 * (2 if two_states else 1),
        batch=config.train.accumulation * images * _image_bytes(config),
        gradients=(held if all_reduced else share) * width,
        gradient_partition=share * width,
        reduction_bucket=BUCKET_ELEMENTS * width if on_accelerator else 0,
        activations=round(images * activation_bytes_per_image(config, width)),
        backward_scratch=round(images * _widest_gradient(config, width)),
        optimizer_scratch=share * FLOAT32 * (3 if config.optim.name == "adamw" else 2),
        checkpoint=total * FLOAT32 * (4 if two_states else 3),
        validation_set=2 * config.eval.images * _image_bytes(config),
        accumulates=config.train.accumulation > 1,
        on_accelerator=on_accelerator,
    )


def working_bytes(config: RunConfig, on_accelerator: bool) -> int:
    """Bytes of a number in working precision."""
    setting = config.train.precision
    precision: Precision = ("bf16" if on_accelerator else "fp32") if setting == "auto" else setting
    return 2 if precision == "bf16" else FLOAT32


def micro_batch_images(config: RunConfig) -> int:
    """Images of one forward pass of one process."""
    return config.train.batch_images // (config.parallel.world * config.train.accumulation)


def activation_bytes_per_image(config: RunConfig, width: int) -> float:
    """Tensors that autograd saves of one image, `width` bytes to a number where it is not always fp32."""
    sparse = len(config.sparse_layer_indices)
    dense = config.model.num_layers - sparse
    layers = config.model.num_layers * _attention_bytes(config, width)
    layers += dense * _dense_bytes(config, width)
    layers += sparse * _sparse_bytes(config, width) if sparse else 0
    return _text_bytes(config, width) + layers + _ends_bytes(config, width)


def _attention_bytes(config: RunConfig, width: int) -> float:
    """Self- and cross-attention of one layer, with the norm and modulation before, and fused kernels.

    Self: input, its norm, the modulated norm, query before and after its norm, output of heads, output (for its gate);
    key and value, and the normed key. Cross: input, query twice, output of heads; key and value, and the normed key.
    """
    model, T, L = config.model, config.num_train_tokens, config.data.caption_length
    kv = model.width * model.num_kv_heads // model.num_heads
    numbers = 11 * T * model.width + 3 * (T + L) * kv
    norms = 2 * T + 4 * T * model.num_heads + 2 * (T + L) * model.num_kv_heads
    modulation = 7 * model.width
    return width * (numbers + norms + modulation) + FLOAT32 * 2 * T * model.num_heads


def _dense_bytes(config: RunConfig, width: int) -> float:
    """Input, its norm, the modulated norm, both sides of the activation, and the output (for its gate)."""
    T, d, hidden = config.num_train_tokens, config.model.width, hidden_width(config, config.model.ffn_factor)
    return width * (T * (4 * d + 2 * hidden + 2) + d)


def _sparse_bytes(config: RunConfig, width: int) -> float:
    """As dense, over slots: gathered inputs, both sides of the activation, and outputs.

    The router and the sum over experts are in fp32: a copy of its input in bf16 training, affinities, and indices.
    """
    T, d, routing = config.num_train_tokens, config.model.width, config.routing
    slots, sides = _slots(config), 4 if routing.expert == "swiglu" else 2
    hidden, shared = (hidden_width(config, factor or 0) for factor in (routing.expert_factor, routing.shared_factor))
    router = FLOAT32 * T * routing.num_experts * (1 if routing.top_k is None else 3) + 20 * slots
    router += FLOAT32 * T * d if width < FLOAT32 else 0
    experts = slots * width * (2 * d + sides * hidden)
    shared_bytes = width * T * (sides * shared + 2 * d) if shared else 0.0
    return width * (T * (4 * d + 2) + d) + router + experts + shared_bytes


def _slots(config: RunConfig) -> float:
    """Slots of one image in one routed layer, empty ones included."""
    slots = slots_per_image(config, config.num_train_tokens, training=True)
    if capacity_factor(config, training=True) is not None:
        return slots
    return slots * min(FULLEST_EXPERT, config.routing.num_experts / (config.routing.top_k or 1))


def _text_bytes(config: RunConfig, width: int) -> float:
    """The caption encoder: three norms in fp32, attention, and the projection to the width of the model.

    Of precomputed features: those, both sides of the activation, and what comes out of the second layer.
    """
    w, L, layers = config.model.text_width, config.data.caption_length, config.model.text_layers
    if config.data.text_width is not None:
        return width * (precomputed_features(config) + (3 * L + 2) * config.model.width)
    per_layer = L * w * (width * (1 + 3 + 1 + 1 + 4 + 4) + FLOAT32 * 4)
    return layers * per_layer + L * w * (FLOAT32 * 2 + width) + width * L * config.model.width


def _ends_bytes(config: RunConfig, width: int) -> float:
    """Embedding of patches and time, and the head: its norm, its input, and the difference that the loss squares."""
    T, d = config.num_train_tokens, config.model.width
    patch = config.model.patch_size**2 * config.data.channels
    return width * (T * (patch + 3 * d) + 256 + 5 * d) + FLOAT32 * T * patch


def _widest_gradient(config: RunConfig, width: int) -> float:
    """Of the hidden layer of one feed-forward."""
    T, routing = config.num_train_tokens, config.routing
    dense = T * hidden_width(config, config.model.ffn_factor)
    sparse = _slots(config) * hidden_width(config, routing.expert_factor or 0) if config.sparse_layer_indices else 0.0
    return width * max(float(dense), sparse)


def _image_bytes(config: RunConfig) -> int:
    """Pixels and noise in fp32, caption and kept tokens as indices; precomputed features in fp16 and their length."""
    data = config.data
    kept = config.num_train_tokens if config.train.mask_ratio else 0
    caption = 2 * precomputed_features(config) + 8 if data.text_width is not None else 8 * data.caption_length
    return 2 * FLOAT32 * data.channels * data.image_size**2 + caption + 8 * kept + FLOAT32
