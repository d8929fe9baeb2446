"""Defines the settings of routing: one name for each axis on which the routers of the field differ.

`routers.py` has the routers, each of which is a row that sets these axes; `routing_checks.py` says which settings fit
each other. A setting at a default that earlier versions had implied is absent from what is stored, so that runs which
do not use it keep their config id.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from experiments.config.execution_settings import Settings, absent_at
from experiments.config.limits import (
    BatchImages,
    Experts,
    GateScale,
    ImagesOrNone,
    LossWeight,
    Smoothing,
    Text,
    TopK,
    WidthFactor,
    WidthFactorOrNone,
)
from experiments.config.routers import ALIASES, ROUTERS, plugin_hint
from experiments.config.values import OneForm, OneOf

Same = Literal["same"]
Auto = Literal["auto"]
Scope = Literal["batch", "all"]


def canonical_factors(text: str) -> str:
    """Returns the one form of numbers with commas: `1.5,1,0.5` for ` 1.50, 1.0,.5`. Other texts are returned as is."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return text
    return ",".join(repr(number).removesuffix(".0") for number in numbers)


LayerFactors = Annotated[Text, OneForm(canonical_factors)]


class RoutingConfig(Settings):
    """Holds the settings of routing. A field that a router does not have is None (or 0)."""

    name: Annotated[str, OneOf(ROUTERS, plugin_hint, ALIASES)] = Field(description="how tokens find their experts")
    num_experts: Experts = Field(description="experts of a routed layer; 0 when dense")
    capacity_factor: WidthFactor | None = Field(
        description="expert slots per token, C = S f_c / E; None: no limit and no drops"
    )
    eval_capacity_factor: WidthFactor | Same | None = Field(
        description="the same unit outside training; 'same': as in training"
    )
    top_k: TopK | None = Field(description="experts that a token picks; None where experts pick")
    group_images: BatchImages | Scope | None = Field(
        description="images whose tokens compete; 'batch': all that one process takes at a time; 'all': those of all "
        "processes together, in training"
    )
    gating: Literal["softmax", "sigmoid", "identity"] | None = Field(
        description="what makes weights of the router's logits"
    )
    expert: Literal["gelu", "swiglu"] | None = Field(description="activation inside an expert")
    expert_factor: WidthFactor | None = Field(description="hidden width of an expert over width")
    shared_factor: WidthFactorOrNone | None = Field(description="hidden width of the shared experts over width")
    balance_loss_weight: LossWeight = Field(description="of one routed layer; the losses of all layers are added")
    expert_bias: bool = Field(
        **absent_at(False), description="biases after both matrices of every expert, shared ones too"
    )
    gate_norm: Literal["none", "token"] = Field(
        **absent_at("none"), description="token: gates of a token over their sum, as it enters the output"
    )
    gate_scale: GateScale | Auto = Field(
        **absent_at(1.0), description="factor on all gates; auto: E / f_c, for softmax gates of experts"
    )
    input: Literal["modulated", "plain_time", "time", "time_label"] = Field(
        **absent_at("modulated"),
        description="what the router reads: the token as experts read it; the token before modulation beside the "
        "embedded time; the embedded time alone; or with the mean of the caption's features",
    )
    form: Literal["linear", "mlp", "cosine"] = Field(
        **absent_at("linear"), description="how logits follow from that: one matrix, two with GELU, or cosines"
    )
    bias_update_rate: LossWeight = Field(
        **absent_at(0.0),
        description="step of a bias that only decides, never weighs; it evens out loads without a loss",
    )
    capacity_schedule: Literal["none", "low_noise", "high_noise"] = Field(
        **absent_at("none"), description="the capacity of an image follows its t, with the mean f_c: more at this end"
    )
    capacity_warmup_images: ImagesOrNone = Field(
        **absent_at(0), description="images over which f_c falls from the number of experts to its value"
    )
    capacity_by_layer: LayerFactors | None = Field(
        **absent_at(None), description="factor on f_c of each routed layer, such as 1.5,1,0.5; their mean is 1"
    )
    eval_decision: Literal["same", "threshold", "predictor"] = Field(
        **absent_at("same"),
        description="outside training: as in training; by running thresholds of scores; by those of a predictor",
    )
    threshold_decay: Smoothing = Field(**absent_at(0.95), description="of the running thresholds, at each step")
    threshold_warmup_images: ImagesOrNone = Field(
        **absent_at(0), description="images over which experts compete, before their running thresholds decide"
    )
    balance_scope: Literal["group", "process", "all"] = Field(
        **absent_at("group"), description="tokens over which the balance loss counts loads"
    )
    z_loss_weight: LossWeight = Field(
        **absent_at(0.0), description="of the squared log of the sum of exponentials of a token's logits, by layer"
    )
    similarity_loss_weight: LossWeight = Field(
        **absent_at(0.0), description="of Expert Race's loss on experts that serve the same tokens, by layer"
    )
    contrastive_loss_weight: LossWeight = Field(
        **absent_at(0.0), description="of ProMoE's loss between prototypes and the tokens they attract, by layer"
    )
    predictor_loss_weight: LossWeight = Field(
        **absent_at(0.0), description="of DiffMoE's capacity predictor, which trains with it, by layer"
    )
    prior_loss_weight: LossWeight = Field(
        **absent_at(0.0), description="of Switch-DiT's distance of gates from a prior over the noise levels"
    )
    text_experts: Experts = Field(
        **absent_at(0),
        description="experts of a routed layer for text tokens, beside those for image tokens, with model.block=mmdit; "
        "0: their feed-forward is dense",
    )
    unconditional_expert: bool = Field(
        **absent_at(False), description="an expert of its own for all tokens of images without a caption"
    )
