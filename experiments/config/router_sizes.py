"""The sizes of a router's weights, their FLOPs, and the factors on f_c by layer, by arithmetic.

Legend: d width, I values that the router reads, E experts, T tokens of an image.
"""

from __future__ import annotations

import math

from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError


def router_input_width(config: RunConfig) -> int:
    """Returns I: the width, or twice the width where the router reads the time or the caption beside something."""
    return config.model.width * (2 if config.routing.input in ("plain_time", "time_label") else 1)


def router_tensors(config: RunConfig) -> dict[str, int]:
    """Returns the elements of the weights of one router by name, in the module's order."""
    routing, d = config.routing, config.model.width
    row, values = ROUTERS.get(routing.name), router_input_width(config)
    sizes: dict[str, int] = {}
    if mixes_tokens(config):
        sizes |= {"weight_DS": d * soft_slots(config), "scale": 1}
    if row is None or row.has_logits:  # the router of a plugin that is not loaded has the map to logits
        sizes["weight_DE"] = (d if routing.form == "mlp" else values) * routing.num_experts
        sizes |= {"hidden_DD": values * d} if routing.form == "mlp" else {}
    if routing.predictor_loss_weight:
        sizes |= {"predictor.w_in.weight": d * d, "predictor.w_out.weight": d * routing.num_experts}
    return sizes


def router_flops(config: RunConfig, num_tokens: int, training: bool) -> int:
    """Returns the FLOPs of one router in a forward pass over one image.

    A router that reads the time alone decides once for an image. The predictor works where it trains and where it
    decides.
    """
    sizes = router_tensors(config)
    if mixes_tokens(config):  # the logits, and the products that mix tokens into slots and slots into tokens
        return 6 * num_tokens * sizes["weight_DS"]
    reads_image = config.routing.input in ("time", "time_label")
    flops = 0
    for name, size in sizes.items():
        is_predictor = name.startswith("predictor")
        if is_predictor and not training and config.routing.eval_decision != "predictor":
            continue
        flops += 2 * size * (1 if reads_image and not is_predictor else num_tokens)
    return flops


def router_flops_without_gradient(config: RunConfig, num_tokens: int) -> int:
    """Returns the FLOPs of the products that a router's backward pass leaves out: the predictor's input needs none."""
    return 2 * num_tokens * router_tensors(config).get("predictor.w_in.weight", 0)


def soft_slots(config: RunConfig) -> int:
    """Returns the slots of all experts for one image of soft MoE, E p, with as many tokens as training keeps or more.

    It is the largest multiple of E that is not above f_c times these tokens, rounded as `budget.expert_capacity` is.
    """
    num_experts, factor = config.routing.num_experts, config.routing.capacity_factor
    assert factor is not None, "soft MoE has a number of slots"
    return num_experts * math.floor(config.num_train_tokens * factor / num_experts + 1e-9)


def mixes_tokens(config: RunConfig) -> bool:
    """Says whether every slot of an expert is a mixture of all tokens of an image."""
    row = ROUTERS.get(config.routing.name)
    return row is not None and row.rule == "soft"


def mixes_blocks(config: RunConfig) -> bool:
    """Says whether experts change the input of whole blocks, so that every feed-forward is dense."""
    row = ROUTERS.get(config.routing.name)
    return row is not None and row.rule == "blocks"


def layer_factors(config: RunConfig) -> tuple[float, ...]:
    """Returns the factor on f_c of each routed layer. Raises `ConfigError` where the text holds no numbers."""
    text = config.routing.capacity_by_layer
    if text is None:
        return (1.0,) * len(config.sparse_layer_indices)
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"routing.capacity_by_layer={text!r} is not a list of numbers.", "Use for example 1.5,1,0.5."
        ) from error
