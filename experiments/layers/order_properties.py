"""Properties of routers about images that share a batch: what one image gets does not depend on the others.

`properties.py` lists them with all others. A rule in which tokens compete over a batch has them where its groups are of
one image.

Legend: as in `routing/contract.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.config.routers import ROUTERS
from experiments.layers.small_layers import (
    NUM_EXPERTS,
    NUM_IMAGES,
    assignment_of,
    gradients,
    require,
    require_close,
    settle,
    small_context,
    small_layer,
    small_tokens,
)
from experiments.routing.contract import Assignment, RoutingContext


def in_groups_of_one_no_image_changes_another(name: str) -> None:
    """Requires that with `routing.group_images=1` the result of an image does not depend on the others of its batch.

    Thresholds are settled and have no warm start, as the batch itself decides before they do.
    """
    settings = {"capacity_factor": 1.0, "group_images": 1, "threshold_warmup_images": 0}
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, **settings)
    settle(layer)
    x_BTD = small_tokens()
    replaced_BTD = torch.cat([3 * torch.randn_like(x_BTD[:1]), x_BTD[1:]])
    before, after = layer(x_BTD), layer(replaced_BTD)
    otherwise = "replacing the first image changes the results of others"
    _require_same(before.out_BTD[1:], after.out_BTD[1:], before.assignment, otherwise)


def in_inference_an_image_alone_is_as_in_a_batch(name: str) -> None:
    """Requires that outside training an image is served alone as in a batch, where no tokens compete over the batch.

    That is so in groups of one image, without a capacity, with a fixed choice, and where thresholds decide. A router
    that is not trained may let its group choose for all tokens, as SegMoE does, and is tried in groups of one image.
    """
    row = ROUTERS[name]
    settles = row.rule == "thresholds" or row.defaults.get("eval_decision", "same") != "same"
    no_limit = {} if row.needs_capacity else {"capacity_factor": None, "eval_capacity_factor": None}
    group = {} if settles or (no_limit and row.trained) else {"group_images": 1}
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, **no_limit, **group)
    settle(layer)
    layer.eval()
    x_BTD = small_tokens()
    context = small_context(x_BTD, num_dropped=1)
    together_BTD = layer(x_BTD, context).out_BTD
    for image in range(NUM_IMAGES):
        alone_BTD = layer(x_BTD[image : image + 1], _images(context, [image])).out_BTD
        require_close(alone_BTD[0], together_BTD[image], "an image alone differs from the same image in a batch")


def images_change_places_with_their_results(name: str) -> None:
    """Requires that in groups of one image another order of the images is the same order of the results."""
    for training in (True, False):
        layer = small_layer(name=name, num_experts=NUM_EXPERTS, capacity_factor=1.0, group_images=1)
        settle(layer)
        layer.train(training)
        x_BTD, order = small_tokens(), list(range(NUM_IMAGES))[::-1]
        context = small_context(x_BTD, num_dropped=1)
        straight, turned = layer(x_BTD, context), layer(x_BTD[order], _images(context, order))
        require_close(turned.out_BTD, straight.out_BTD[order], "the order of the images changes their results")
        require_close(turned.auxiliary_loss, straight.auxiliary_loss, "the order of the images changes the loss")


def images_without_a_caption_leave_the_routed_experts_alone(name: str) -> None:
    """Requires of an unconditional expert that it takes all tokens of images without a caption, and no others.

    In a layer without such an expert a missing caption changes nothing, as far as the router does not read captions.
    """
    layer = small_layer(name=name, num_experts=NUM_EXPERTS, group_images=1)
    settle(layer)
    x_BTD = small_tokens()
    context = small_context(x_BTD)
    nobody = context._replace(dropped_B=torch.ones(NUM_IMAGES, dtype=torch.bool))
    with_captions = layer(x_BTD, context).out_BTD
    if layer.unconditional is None:
        same = torch.equal(layer(x_BTD, nobody).out_BTD, with_captions)
        require(same, "a missing caption changes the result without an unconditional expert")
        return
    assignment = assignment_of(layer, x_BTD, nobody)
    require(int(assignment.tokens_per_expert_E.sum()) == 0, "routed experts take tokens without a caption")
    for parameter, gradient in gradients(layer, x_BTD, num_dropped=NUM_IMAGES).items():
        touched = bool(gradient.ne(0).any())
        require(bool(gradient.isfinite().all()), f"the gradient of {parameter} is not finite without captions")
        require(not (touched and parameter.startswith("experts")), f"{parameter} learns from images without a caption")
    layer.unconditional, layer.router.has_unconditional = None, False
    require_close(with_captions, layer(x_BTD, context).out_BTD, "the unconditional expert changes other images")


def _images(context: RoutingContext, order: list[int]) -> RoutingContext:
    """Returns the context of these images in this order."""
    return context._replace(**{name: value[order] for name, value in context._asdict().items() if value is not None})


def _require_same(found: Tensor, expected: Tensor, assignment: Assignment, otherwise: str) -> None:
    """Requires equal bits where all experts have equal slots; else numbers of rows change the rounding of products."""
    if assignment.slots_E is None:
        require(torch.equal(found, expected), otherwise)
    require_close(found, expected, otherwise)
