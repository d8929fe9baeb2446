"""The FLOPs that torch counts in a forward and backward pass, and those that the budget expects of it."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.budget import budget, compute_varies, executed_flops_per_image
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.config.text_stream import TokenStream, streams
from experiments.data.loader import Batch
from experiments.models.dit import DiT
from experiments.routing.state import RunningThreshold
from experiments.routing.stats import slots_of_image
from experiments.training.objective import forward_loss

BATCH_IMAGES = 2


def gate_products(config: RunConfig, num_tokens: int) -> int:
    """What DeepSpeed's top-2 gate adds: it picks two of E gates by products with one-hot masks, 2 x 2 T E.

    That is how it is written and not what token choice needs, so the arithmetic leaves it out.
    """
    routing = config.routing
    row = ROUTERS[routing.name]
    picked_by_product = str(row.implementation).endswith(":TokenChoiceRouter") and routing.top_k == 2
    sizes = (len(s.routed) * s.num_tokens(num_tokens) * s.config.routing.num_experts for s in streams(config))
    return 4 * sum(sizes) if picked_by_product else 0


def loss_products(config: RunConfig) -> int:
    """What Expert Race's and ProMoE's losses add in training of `BATCH_IMAGES`, forward and backward.

    The first has P^T P with a gradient and M^T M without; the second has the sums of tokens by expert, with a gradient
    of the tokens alone, and cosines of prototypes and centroids. None of them is a product of the model.
    """
    return sum(len(stream.routed) * _loss_products_of_a_layer(stream) for stream in streams(config))


def _loss_products_of_a_layer(stream: TokenStream) -> int:
    config, routing = stream.config, stream.config.routing
    tokens = BATCH_IMAGES * stream.num_tokens(config.num_train_tokens)
    pairs = (6 + 2) * tokens * routing.num_experts**2 if routing.similarity_loss_weight else 0
    size = routing.num_experts * config.model.width
    groups = BATCH_IMAGES if routing.group_images == 1 else 1
    pairs += 4 * tokens * size + 6 * groups * routing.num_experts * size if routing.contrastive_loss_weight else 0
    return pairs


def counted(model: DiT, config: RunConfig, batch: Batch, train: bool) -> tuple[int, float]:
    """FLOPs of `BATCH_IMAGES` by torch, and the expert slots of an image over all layers.

    The math form of attention is two matmuls, which the counter knows on every device.
    """
    model.train(train)
    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(train), sdpa_kernel(SDPBackend.MATH), counter:
        loss_B, output = forward_loss(model, batch, config)
        if train:
            (loss_B.mean() + output.auxiliary_loss).backward()
    slots = float(slots_of_image(output.feed_forward)) if config.sparse_layer_indices else 0.0
    return counter.get_total_flops(), slots


def let_thresholds_decide(model: DiT) -> None:
    """Marks every running threshold as updated once: before its first update it admits every token in evaluation."""
    for module in model.modules():
        if isinstance(module, RunningThreshold):
            module.num_updates.fill_(1)


def expected(config: RunConfig, slots: float, train: bool) -> float:
    """The planned FLOPs of `BATCH_IMAGES`, or those of so many slots where the tokens decide their number."""
    if compute_varies(config, train):
        return BATCH_IMAGES * executed_flops_per_image(config, slots, train)
    cost = budget(config)
    return BATCH_IMAGES * (cost.train_flops_per_image if train else cost.flops_per_image)
