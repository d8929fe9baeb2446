"""Checks that the axes of `routing_settings.py` fit the rule of the router and each other.

A setting at its default always fits. Each mistake is one line that names both settings and a way out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

from experiments.config.blocks import BLOCKS
from experiments.config.router_sizes import layer_factors
from experiments.config.routers import ROUTERS, RouterRow
from experiments.config.schema import RunConfig
from experiments.config.values import shown
from experiments.errors import ConfigError


class Axis(NamedTuple):
    """Says with which families of routers a setting may leave its default, and why with no other.

    `router` is one that takes the setting without others; None: the first of the families does.
    """

    families: Collection[str]
    reason: str
    router: str | None = None


LEARNED = ("tokens", "experts", "pairs", "thresholds")
AXES: dict[str, Axis] = {
    "input": Axis((*LEARNED, "blocks"), "it has no logits that depend on an input"),
    "form": Axis(LEARNED, "it has no logits of a form"),
    "bias_update_rate": Axis(
        ("tokens",), "a bias evens out loads, which only tokens that choose can leave uneven", router="loss_free"
    ),
    "capacity_schedule": Axis(("experts",), "only experts that choose can take another number of tokens at every t"),
    "capacity_warmup_images": Axis(("experts", "pairs"), "only a capacity that decides can fall during training"),
    "capacity_by_layer": Axis(("tokens", "experts", "pairs", "thresholds"), "it has no capacity"),
    "eval_decision": Axis(("experts", "pairs"), "it decides by token, in evaluation as in training", router="diffmoe"),
    "threshold_decay": Axis(("experts", "pairs", "thresholds"), "it has no thresholds", router="diffmoe"),
    "threshold_warmup_images": Axis(("thresholds",), "its experts compete in all of training"),
    "balance_scope": Axis(("tokens",), "it has no balance loss", router="shared_expert"),
    "z_loss_weight": Axis(LEARNED, "it has no logits"),
    "similarity_loss_weight": Axis(LEARNED, "it has no logits"),
    "contrastive_loss_weight": Axis(LEARNED, "it has no prototypes", router="promoe"),
    "predictor_loss_weight": Axis(("experts",), "only experts that choose need to predict who is chosen"),
    "prior_loss_weight": Axis(("blocks",), "it does not choose by noise level"),
    "expert_bias": Axis((*LEARNED, "fixed", "soft"), "its linear experts have biases"),
    "text_experts": Axis((*LEARNED, "fixed"), "its experts do not choose among the tokens of a caption"),
    "unconditional_expert": Axis(LEARNED, "it has no experts that other tokens could leave alone"),
}


def check_axes(config: RunConfig) -> None:
    """Raises `ConfigError` for the first setting that means nothing with this router or beside another setting."""
    routing, row = config.routing, ROUTERS[config.routing.name]
    defaults = type(routing).model_fields
    for key, axis in AXES.items():
        value, default = getattr(routing, key), defaults[key].default
        if value != default and row.rule not in axis.families:
            name = axis.router or next(name for name, other in ROUTERS.items() if other.rule in axis.families)
            raise ConfigError(
                f"routing.{key}={shown(str(value))} does not fit routing.name={routing.name}: {axis.reason}.",
                f"Use routing.{key}={default}, or routing.name={name}.",
            )
    for problem, way_out in _mistakes(config, row):
        raise ConfigError(problem, way_out)


def _mistakes(config: RunConfig, row: RouterRow) -> Iterator[tuple[str, str]]:
    """Yields each combination that means nothing, with the way out."""
    routing, gates = config.routing, "gating" in row.fixed
    if routing.bias_update_rate and routing.gating == "identity":
        yield (
            f"routing.bias_update_rate={routing.bias_update_rate:g} does not fit routing.gating=identity: the size of "
            "a logit is not bounded, so that no step of the bias suits it.",
            "Use routing.gating=sigmoid, or softmax.",
        )
    for key in ("bias_update_rate", "balance_scope") if gates else ():
        value, default = getattr(routing, key), type(routing).model_fields[key].default
        if value != default:
            yield (
                f"routing.{key}={value} does not fit routing.name={routing.name}: DeepSpeed's gates decide and count "
                "loads themselves.",
                f"Use routing.{key}={default}, or routing.name=shared_expert.",
            )
    if routing.eval_decision == "predictor" and not routing.predictor_loss_weight:
        yield (
            "routing.eval_decision=predictor needs routing.predictor_loss_weight, without which the predictor learns "
            "nothing.",
            "Use routing.predictor_loss_weight=1, or routing.eval_decision=threshold.",
        )
    if routing.contrastive_loss_weight and routing.form != "cosine":
        yield (
            f"routing.contrastive_loss_weight={routing.contrastive_loss_weight:g} does not fit routing.form="
            f"{routing.form}, which has no prototypes.",
            "Use routing.form=cosine, or routing.contrastive_loss_weight=0.",
        )
    if routing.contrastive_loss_weight and routing.input != "modulated":
        yield (
            f"routing.contrastive_loss_weight={routing.contrastive_loss_weight:g} does not fit routing.input="
            f"{routing.input}: it compares prototypes with tokens.",
            "Use routing.input=modulated, or routing.contrastive_loss_weight=0.",
        )
    if routing.text_experts and not BLOCKS[config.model.block].has_text_stream:
        yield (
            f"routing.text_experts={routing.text_experts} does not fit model.block={config.model.block}, whose text "
            "tokens pass no feed-forward.",
            "Use model.block=mmdit, or routing.text_experts=0.",
        )
    elif routing.text_experts and config.sparse_layer_indices == (config.model.num_layers - 1,):
        yield (
            f"routing.text_experts={routing.text_experts} has no effect with model.sparse_layers="
            f"{config.model.sparse_layers}: only the last block has experts, where text tokens pass no feed-forward.",
            "Use model.sparse_layers=all, or routing.text_experts=0.",
        )
    if routing.text_experts and routing.top_k is not None and routing.top_k > routing.text_experts:
        yield (
            f"routing.top_k={routing.top_k} is more than routing.text_experts={routing.text_experts}.",
            f"Use routing.text_experts={routing.top_k}, or routing.text_experts=0.",
        )
    yield from _mistakes_without_effect(config)
    yield from _mistakes_of_scope(config, row)
    yield from _mistakes_of_capacity(config)


def _mistakes_without_effect(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yields settings that nothing would read: they would make another arm of a run with equal results."""
    routing, default = config.routing, type(config.routing).model_fields["threshold_decay"].default
    if routing.eval_decision != "same" and routing.eval_capacity_factor != "same":
        yield (
            f"routing.eval_capacity_factor={routing.eval_capacity_factor} does not fit routing.eval_decision="
            f"{routing.eval_decision}, which has no capacity.",
            "Use routing.eval_capacity_factor=same, or routing.eval_decision=same.",
        )
    has_thresholds = ROUTERS[routing.name].rule == "thresholds" or routing.eval_decision != "same"
    if routing.threshold_decay != default and not has_thresholds:
        yield (
            f"routing.threshold_decay={routing.threshold_decay:g} does not fit routing.eval_decision=same, which has "
            "no thresholds.",
            f"Use routing.threshold_decay={default}, or routing.eval_decision=threshold.",
        )
    row = ROUTERS[routing.name]
    if routing.balance_loss_weight and not row.balance_loss_weight and row.rule != "tokens":
        # A plugin whose row gives the setting a value reads it, whatever its rule is.
        yield (
            f"routing.balance_loss_weight={routing.balance_loss_weight:g} does not fit routing.name={routing.name}, "
            "which has no balance loss.",
            "Use routing.balance_loss_weight=0, or routing.name=shared_expert.",
        )
    if routing.balance_scope != "group" and not routing.balance_loss_weight:
        yield (
            f"routing.balance_scope={routing.balance_scope} needs routing.balance_loss_weight, without which there is "
            "no balance loss.",
            "Use routing.balance_loss_weight=0.01, or routing.balance_scope=group.",
        )


def _mistakes_of_scope(config: RunConfig, row: RouterRow) -> Iterator[tuple[str, str]]:
    routing = config.routing
    if routing.group_images == "all" and not row.has_global_scope:
        yield (
            f"routing.group_images=all does not fit routing.name={routing.name}, which cannot rank the tokens of all "
            "processes.",
            "Use routing.group_images=batch.",
        )
    has_slots = row.rule != "tokens" or routing.capacity_factor is not None
    if routing.unconditional_expert and has_slots and routing.group_images != 1:
        yield (
            f"routing.unconditional_expert=True does not fit routing.group_images={routing.group_images}: tokens "
            "without a caption would compete with others for slots that they do not use.",
            "Use routing.group_images=1.",
        )
    if routing.unconditional_expert and not config.train.caption_dropout:
        yield (
            "routing.unconditional_expert=True does not fit train.caption_dropout=0: the expert would never train.",
            "Use train.caption_dropout=0.1, or routing.unconditional_expert=False.",
        )


def _mistakes_of_capacity(config: RunConfig) -> Iterator[tuple[str, str]]:
    routing = config.routing
    if routing.capacity_schedule != "none" and routing.group_images != 1:
        yield (
            f"routing.capacity_schedule={routing.capacity_schedule} does not fit routing.group_images="
            f"{routing.group_images}: the capacity follows the t of one image.",
            "Use routing.group_images=1.",
        )
    if routing.capacity_schedule != "none" and routing.eval_decision != "same":
        yield (
            f"routing.capacity_schedule={routing.capacity_schedule} does not fit routing.eval_decision="
            f"{routing.eval_decision}, which has no capacity.",
            "Use routing.eval_decision=same.",
        )
    if routing.capacity_warmup_images and routing.capacity_factor is None:
        yield (
            f"routing.capacity_warmup_images={routing.capacity_warmup_images} does not fit routing.capacity_factor="
            "None, which has no limit to fall to.",
            "Use routing.capacity_factor=2.",
        )
    if routing.capacity_by_layer is None:
        return
    given, layers = f"routing.capacity_by_layer={shown(routing.capacity_by_layer)}", len(config.sparse_layer_indices)
    factors = layer_factors(config)
    if routing.capacity_factor is None:
        yield f"{given} does not fit routing.capacity_factor=None.", "Use routing.capacity_factor=2."
    if len(factors) != layers:
        yield f"{given} has {len(factors)} numbers, and {layers} layers are routed.", f"Give {layers} numbers."
    if not all(0 < factor < math.inf for factor in factors):
        yield f"{given} has a number that is not above 0.", "Use numbers such as 1.5 and 0.5."
    mean = sum(factors) / len(factors)
    if abs(mean - 1) > 1e-3:
        yield (
            f"{given} has the mean {mean:.4g}, so that routing.capacity_factor would not be the mean over layers.",
            f"Use routing.capacity_by_layer={','.join(f'{factor / mean:.4g}' for factor in factors)}.",
        )
