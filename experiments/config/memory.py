"""Estimates the memory of one training process by arithmetic: what it always holds, and the peaks of an iteration.

The estimate counts what `training/engine.py` and DeepSpeed 0.19.8 really keep: weights in working precision, the
process's partition of fp32 master weights, moving average and optimizer state, gradients, reduction buffers, and what
autograd saves (`activations.py`). The ZeRO stage decides what is partitioned:

- 0: every process holds everything whole, and trains in fp32, so that the module's weights are the master weights.
- 1: master weights, average and optimizer state are partitioned; gradients are whole until they are reduced.
- 2: gradients are reduced during the backward pass, and kept for the tensors that the process's partition touches.
- 3: weights are partitioned too. Gathered weights stay if they are used again within `stage3_max_reuse_distance` (10^9)
  elements, half of which lie in the forward pass; the prefetch bucket and the module that is computing come on top.
  The gradients of the process's partition have a buffer of their own.

Tests compare the sums with measured tensors and with the resident set of a real run. All results are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from experiments.config.activations import FLOAT32, activations, working_bytes
from experiments.config.budget import budget
from experiments.config.data_sets import caption_bytes
from experiments.config.ema_widths import power_widths
from experiments.config.schema import RunConfig
from experiments.config.tensors import experts_spread, largest_tensor, shares
from experiments.config.zero_stage import planned_stage

GIB = 2**30
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`. An accelerator allocates it all; a CPU backs only the pages that are written."""
REUSED_ELEMENTS = 500_000_000
"""Half of DeepSpeed's `stage3_max_reuse_distance`: the part that lies in the forward pass."""
PREFETCH_ELEMENTS = 50_000_000
"""DeepSpeed's `stage3_prefetch_bucket_size`."""
SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's `sub_group_size`: the number of elements that ZeRO-3 optimizes at a time."""
PROCESS_BYTES = 340 * 2**20
"""Resident set of a training process on a CPU before it holds a tensor: Python, torch, DeepSpeed, loaded kernels."""
BF16_BYTES, ZERO_3_BYTES, PEERS_BYTES = 35 * 2**20, 40 * 2**20, 50 * 2**20
"""The resident set grows by so much with bf16 kernels, torch's compiler (ZeRO-3 imports it), and other processes."""
MIRROR_BYTES = 80 * 2**20
"""The resident set grows by this much with W&B: its client, and pandas, which it imports for the first image."""
HOST_SLACK = 1.1
"""Ratio of resident set to live tensors on a CPU: the allocator keeps gaps between tensors of changing sizes."""
CONTEXT_BYTES = 700 * 2**20
"""Assumed accelerator memory outside any tensor: the driver's context, kernels and the libraries' workspaces."""
ACCELERATOR_SLACK = 1.05
"""Assumed ratio of reserved to allocated memory on an accelerator."""

Moment = dict[str, int]
"""Bytes by kind of memory that are alive at the same time."""


@dataclass(frozen=True)
class Memory:
    """Holds the parts of one process's memory in bytes: the first four always exist, the others during an iteration."""

    parameters: int
    """Weights in working precision; with ZeRO-3 only the process's partition."""
    master_weights: int
    """Master weights in fp32. DeepSpeed keeps this copy in fp32 training too, except with ZeRO-0."""
    moving_average: int
    optimizer_state: int
    batch: int
    """The images, noise and captions of all accumulation steps."""
    gathered: int
    """Weights of other processes that ZeRO-3 has gathered for layers at one time."""
    gradients: int
    """Unreduced gradients: those of all tensors, or of the largest tensor with ZeRO-2 and 3 on an accelerator."""
    gradient_partition: int
    """Reduced gradients; with ZeRO-1 and 2 those of every tensor that the process's partition touches."""
    reduction_bucket: int
    """The buffer in which gradients are reduced, where it is separate from the gradients' own memory."""
    reduction_copy: int
    """The flat copy of the bucket that is sent to the other processes."""
    activations: int
    """The bytes that autograd saves for the backward pass of one micro batch."""
    recomputed: int
    """Activations of the one block that activation checkpointing recomputes at a time; 0 without checkpointing."""
    backward_scratch: int
    """The largest gradient of an activation."""
    all_to_all: int
    """Send and receive buffers of the all-to-all exchange of slots; 0 without expert parallelism."""
    optimizer_scratch: int
    """The fp32 gradient at the optimizer step and the optimizer's temporaries."""
    checkpoint: int
    """The process's part of the fp32 state in a checkpoint: a copy in host memory while it is written."""
    validation_set: int
    """The validation set in host memory."""
    wandb_client: int
    """The W&B client in host memory. Only the first process has one, but it is counted for every process."""
    activations_at_first_reduction: int
    """Saved activations that the backward pass still needs when the ZeRO-2 or 3 bucket is full for the first time."""
    process: int
    zero_stage: int
    accumulates: bool
    on_accelerator: bool

    @property
    def persistent(self) -> int:
        """Returns the bytes that are held from the first step to the last."""
        states = self.parameters + self.master_weights + self.moving_average + self.optimizer_state
        return states + self._kept_for_good + (self.reduction_bucket if self.zero_stage == 3 else 0)

    @property
    def backward_peak(self) -> int:
        """Returns the most bytes that tensors take during the backward pass and the reduction of gradients."""
        return max(sum(moment.values()) for name, moment in self.moments().items() if name != "optimizer step")

    @property
    def step_peak(self) -> int:
        """Returns the bytes that tensors take during the optimizer step."""
        return sum(self.moments()["optimizer step"].values())

    @property
    def tensors_peak(self) -> int:
        """Returns the most bytes that live tensors take at any point of an iteration on the training device."""
        return sum(self.at_peak()[1].values())

    @property
    def peak(self) -> int:
        """Returns what one process needs on the training device; on a CPU it includes the checkpoint copy."""
        return self.tensors_peak + self.outside_tensors(self.tensors_peak)

    def outside_tensors(self, tensors: int) -> int:
        """Returns the bytes that a process takes on the training device beside `tensors` bytes of tensors."""
        if self.on_accelerator:
            return CONTEXT_BYTES + round((ACCELERATOR_SLACK - 1) * tensors)
        # Blocks are recomputed and weights gathered again in autograd's thread, whose heap is separate and keeps gaps:
        # resident sets showed 0.7 to 3 times these bytes.
        gaps = 2 * (self.recomputed + self.gathered)
        return self._host_bytes + round((HOST_SLACK - 1) * tensors) + gaps

    @property
    def host_peak(self) -> int:
        """Returns what one process needs in host memory while it saves a checkpoint; on a CPU this is `peak`."""
        return self._host_bytes if self.on_accelerator else self.peak

    @property
    def peak_gib(self) -> float:
        """Returns `peak` in GiB."""
        return self.peak / GIB

    def at_peak(self) -> tuple[str, Moment]:
        """Returns the name of the moment at which most bytes are alive, and those bytes by kind."""
        return max(self.moments().items(), key=lambda moment: sum(moment[1].values()))

    def moments(self) -> dict[str, Moment]:
        """Returns what is alive at each point of an iteration that can be the peak."""
        held: Moment = {
            "parameters": self.parameters,
            "master_weights": self.master_weights,
            "moving_average": self.moving_average,
            "optimizer_state": self.optimizer_state,
            "batch": self.batch,
        }
        during = {**held, "gathered": self.gathered, "reduction": self.reduction_bucket}
        kept = self.gradient_partition if self.zero_stage == 2 and self.accumulates else self._kept_for_good
        whole = self.gradients if self.zero_stage < 2 and self.accumulates else 0
        work = self.activations + self.recomputed + self.backward_scratch
        moments = {
            "backward pass": {
                **during, "activations": work, "all_to_all": self.all_to_all, "gradients": kept + whole,
            },
        }  # fmt: skip
        if self.zero_stage >= 2 and self.on_accelerator:
            moments["first reduction"] = {
                **during, "activations": self.activations_at_first_reduction, "gradients": kept + self.gradients,
                "reduction": self.reduction_bucket + self.reduction_copy,
            }  # fmt: skip
        moments["gradient reduction"] = {**during, **self._reduced(kept)}
        moments["optimizer step"] = {
            **held, "gradients": self._kept_for_good, "optimizer_scratch": self.optimizer_scratch,
            "reduction": self.reduction_bucket if self.zero_stage == 3 else 0,
        }  # fmt: skip
        return moments

    @property
    def _host_bytes(self) -> int:
        """Returns the bytes that are in host memory even where training runs on an accelerator."""
        return self.process + self.validation_set + self.checkpoint + self.wandb_client

    @property
    def _kept_for_good(self) -> int:
        """Returns the bytes of gradients that are never freed: ZeRO-3 keeps its partition in a permanent buffer."""
        return self.gradient_partition if self.zero_stage == 3 else 0

    def _reduced(self, kept: int) -> Moment:
        """Returns what is alive once all gradients exist. On an accelerator those in the bucket exist only there."""
        copy, partition = self.reduction_copy, self.gradient_partition if self.zero_stage in (1, 2) else 0
        in_bucket = min(self.reduction_bucket, self.gradients) if self.zero_stage == 1 else 0
        at_once = copy + partition if in_bucket < self.gradients and self.on_accelerator else max(copy, partition)
        after = self.gradients - in_bucket + at_once
        return {"gradients": kept + max(self.gradients, after) - copy, "reduction": self.reduction_bucket + copy}


class _Elements(NamedTuple):
    """Counts the elements that one process has."""

    held: int
    """Elements of the weights that it computes with."""
    share: int
    """Elements of its partition of master weights, moving average and optimizer state."""
    kept: int
    """Elements of the gradients that it keeps after reduction."""
    optimized: int
    """The most elements that are optimized at a time."""
    before_last: int
    """`optimized` without the last group, whose gradients wait while the others are stepped; 0 with one group."""
    last: int


def memory(config: RunConfig, on_accelerator: bool) -> Memory:
    """Returns what each process of `config` holds, given its `parallel`, `train.accumulation` and `train.precision`."""
    width, stage = working_bytes(config, on_accelerator), planned_stage(config, on_accelerator)
    params = budget(config).params_by_part
    total, images, world = sum(params.values()), config.micro_batch_images, config.parallel.world
    elements = _elements(config, params, stage)
    states = 2 if config.optim.name == "adamw" or config.optim.momentum > 0 else 1
    averages = max(1, len(power_widths(config)))
    saved = activations(config, width, on_accelerator)
    more = BF16_BYTES * (width < FLOAT32) + ZERO_3_BYTES * (stage == 3) + PEERS_BYTES * (world > 1)
    return Memory(
        parameters=(elements.share if stage == 3 else elements.held) * width,
        master_weights=elements.share * FLOAT32 if stage else 0,
        moving_average=elements.share * FLOAT32 * averages,
        optimizer_state=elements.share * FLOAT32 * states,
        batch=config.train.accumulation * images * _image_bytes(config),
        gathered=_gathered(config, params) * width if stage == 3 and world > 1 else 0,
        gradients=(elements.held if stage < 2 or not on_accelerator else largest_tensor(config)) * width,
        gradient_partition=elements.kept * width,
        reduction_bucket=BUCKET_ELEMENTS * width if on_accelerator and stage else 0,
        reduction_copy=min(BUCKET_ELEMENTS, elements.held) * width if world > 1 else 0,
        activations=round(images * saved.saved),
        recomputed=round(images * saved.recomputed),
        backward_scratch=round(images * saved.widest_gradient),
        all_to_all=round(images * saved.exchanged),
        optimizer_scratch=_optimizer_scratch(config, elements, width, on_accelerator, stage),
        checkpoint=-(-total // world) * FLOAT32 * (1 + averages + states),
        validation_set=2 * config.eval.images * _image_bytes(config),
        wandb_client=MIRROR_BYTES if config.wandb.mode != "disabled" else 0,
        activations_at_first_reduction=round(images * saved.saved * max(0.0, 1 - BUCKET_ELEMENTS / elements.held)),
        process=PROCESS_BYTES + more,
        zero_stage=stage,
        accumulates=config.train.accumulation > 1,
        on_accelerator=on_accelerator,
    )


def _elements(config: RunConfig, params: dict[str, int], stage: int) -> _Elements:
    total, spread = sum(params.values()), experts_spread(config)
    held = total - params["experts"] + params["experts"] // spread
    if stage == 0:
        return _Elements(held, held, 0, held, 0, held)
    if stage == 3:
        share = -(-total // config.parallel.world)
        return _Elements(held, share, share, min(share, SUB_GROUP_ELEMENTS), 0, 0)
    of = shares(config)
    return _Elements(held, of.partition, of.kept, of.largest_group, of.before_last, of.last)


def _optimizer_scratch(config: RunConfig, elements: _Elements, width: int, on_accelerator: bool, stage: int) -> int:
    """Returns the bytes of the fp32 gradient and of the optimizer's temporaries. AdamW has no temporaries where it is
    a single pass, and otherwise two of the size of what is stepped at a time.

    Gradients that wait for their group are counted too. ZeRO-0 steps tensor by tensor on a CPU, and all tensors at once
    on an accelerator, where the multi-tensor operators have one temporary less.
    """
    temporaries = (0 if config.train.is_fast else 2) if config.optim.name == "adamw" else 1
    if stage == 0:
        step = min(1, temporaries) * elements.held if on_accelerator else temporaries * largest_tensor(config)
        return elements.held * width + step * FLOAT32
    of_one = FLOAT32 * (1 + temporaries)
    converting = elements.kept * width + elements.optimized * (width + (FLOAT32 if width < FLOAT32 else 0))
    if stage == 3:
        converting -= elements.kept * width
    if elements.before_last == 0:
        return max(converting, elements.optimized * of_one)
    return max(converting, elements.kept * width + elements.before_last * of_one, elements.last * of_one)


def _gathered(config: RunConfig, params: dict[str, int]) -> int:
    """Returns the most weight elements that ZeRO-3 holds gathered at a time."""
    layers = len(config.sparse_layer_indices)
    module = max(largest_tensor(config), params["experts"] // layers if layers else 0)
    return min(sum(params.values()), REUSED_ELEMENTS + PREFETCH_ELEMENTS + module)


def _image_bytes(config: RunConfig) -> int:
    """Returns the bytes of one image of a batch: pixels and noise in fp32, kept tokens, and caption or its features."""
    data = config.data
    kept = config.num_train_tokens if config.train.mask_ratio else 0
    return 2 * FLOAT32 * data.channels * data.image_size**2 + caption_bytes(config) + 8 * kept + FLOAT32
