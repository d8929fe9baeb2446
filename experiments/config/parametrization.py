"""Says how each parameter starts and learns, so that settings tuned on a small model suit larger ones.

`optim.parametrization=mup` is the maximal-update parametrization (Yang et al. 2022, arXiv 2203.03466) for diffusion
transformers (DiT-muP, arXiv 2505.15270). A learning rate that is best at `model.base_width` then stays near the best at
other widths. `KINDS` has the rules: with rho = width / base width, the standard deviation of the first weights and the
learning rate of Adam-like optimizers change by powers of rho. At the base width every factor is 1, so that both
parametrizations give the same run. What is tuned at the base must otherwise stay fixed: depth, head size
(`model.head_size`), the share of key and value heads, text width, experts, f_c and the factors of hidden widths.

`optim.rate_by_length` follows batch and length of training: `followed_length` has the rule. This module is free of
torch; `models/dit.py` scales the first weights and `training/optimizer.py` builds the parameter groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from experiments.config.schema import RunConfig

Kind = Literal["input", "vector", "hidden", "router", "output", "encoder"]


class KindRow(NamedTuple):
    """Describes one kind of parameter: its standard deviation and rate are those of the base times powers of rho."""

    std_power: float
    rate_power: float
    source: str


# fmt: off
KINDS: dict[Kind, KindRow] = {
    #                   std   rate  source
    "input":    KindRow( 0.0,  0.0, "arXiv 2203.03466, table 8; fan-in does not grow with the width"),
    "vector":   KindRow( 0.0,  0.0, "arXiv 2203.03466, table 8; biases, norms and modulation tables"),
    "hidden":   KindRow(-0.5, -1.0, "arXiv 2203.03466, table 8; an expert counts by its own fan-in, arXiv 2508.09752"),
    "router":   KindRow(-0.5, -1.0, "Complete-muE, arXiv 2605.23893; the number of experts is fixed"),
    "output":   KindRow( 0.0, -1.0, "DiT-muP, arXiv 2505.15270; starts at 0, the rate replaces its multiplier 1 / rho"),
    "encoder":  KindRow( 0.0,  0.0, "the text encoder has a width of its own, which stays fixed"),
}
# fmt: on

_ATTENTION = ("query.weight", "key_value.weight", "out.weight")
_NAMES: dict[Kind, tuple[str, ...]] = {
    "input": (
        "embed.weight", "time.mlp_in.weight", "text.project.weight", "text.text_in.weight", "text.pooled_in.weight",
        "text.table.weight",
    ),
    "vector": (
        "embed.bias", "head.bias", "modulation_2D", "blocks.modulation_6D",
        "blocks.ffn.experts.b_in_EF", "blocks.ffn.experts.b_out_ED",
        "blocks.ffn.shared.w_in.bias", "blocks.ffn.shared.w_out.bias",
        "blocks.ffn.unconditional.w_in.bias", "blocks.ffn.unconditional.w_out.bias",
        "time.mlp_in.bias", "time.mlp_out.bias", "time.modulation.bias", "text.project.bias",
        "text.text_in.bias", "text.text_out.bias", "text.pooled_in.bias", "text.pooled_out.bias",
        "blocks.ffn.router.scale", "blocks.switch.experts.bias_ED",
        "modulation.bias", "blocks.modulation.bias", "blocks.ffn.w_in.bias", "blocks.ffn.w_out.bias",
        *(f"blocks.{part}.{linear}.bias" for part in ("attention", "text_attention")
          for linear in ("query", "key_value", "out")),
        *(f"blocks.{part}.{norm}.{kind}" for part in ("attention", "text_attention", "cross_attention")
          for norm in ("norm_query", "norm_key") for kind in ("weight", "bias")),
        "blocks.text_modulation.bias", "repa.w_in.bias", "repa.w_mid.bias", "repa.w_out.bias",
    ),
    "hidden": (
        "time.mlp_out.weight", "time.modulation.weight", "modulation.weight", "blocks.modulation.weight",
        "text.text_out.weight", "text.pooled_out.weight", "blocks.text_modulation.weight",
        *(f"blocks.{part}.{weight}" for part in ("attention", "text_attention", "cross_attention")
          for weight in _ATTENTION),
        "blocks.ffn.w_in.weight", "blocks.ffn.w_out.weight",
        "blocks.ffn.experts.w_in_EFD", "blocks.ffn.experts.w_out_EFD",
        "blocks.ffn.shared.w_in.weight", "blocks.ffn.shared.w_out.weight",
        "blocks.ffn.unconditional.w_in.weight", "blocks.ffn.unconditional.w_out.weight",
        "blocks.ffn.router.hidden_DD", "blocks.ffn.router.predictor.w_in.weight",
        "blocks.switch.experts.weight_EDD", "repa.w_in.weight", "repa.w_mid.weight",
    ),
    "router": (
        "blocks.ffn.router.weight_DE", "blocks.ffn.router.weight_DS", "blocks.ffn.router.predictor.w_out.weight",
        "blocks.switch.router.weight_DE", "repa.w_out.weight",
    ),
    "output": ("head.weight",),
    "encoder": (
        "text.token.weight", "text.position_LV", "text.norm.weight", "text.blocks.norm_attention.weight",
        "text.blocks.norm_ffn.weight", "text.blocks.qkv.weight", "text.blocks.out.weight",
        "text.blocks.ffn_in.weight", "text.blocks.ffn_out.weight",
    ),
}  # fmt: skip
"""The parameters of a `DiT` by kind. The numbers of blocks are left out of their names."""
KIND_BY_NAME: dict[str, Kind] = {name: kind for kind, names in _NAMES.items() for name in names}

_STANDARD_STD: dict[str, Callable[[int, int], float]] = {
    "embed.weight": lambda width, patch: (patch + width) ** -0.5,  # Xavier
    "time.mlp_out.weight": lambda width, patch: 1.0,  # 0.02 at every width, as in DiT
    "time.mlp_out.bias": lambda width, patch: width**-0.5,  # torch draws the biases of a Linear by its fan-in
    "text.text_out.bias": lambda width, patch: width**-0.5,
    "text.pooled_out.bias": lambda width, patch: width**-0.5,
}
"""The standard deviation of the standard draw, but for a constant, by width and number of values of a patch.

A parameter is left out where the draw already follows the power of its kind."""


def kind_of(name: str) -> Kind:
    """Returns the kind of the parameter `name` of a `DiT`. Raises `KeyError` for a name that the table lacks.

    The feed-forward of text tokens has the kinds of that of image tokens.
    """
    plain = ".".join(piece for piece in name.split(".") if not piece.isdigit())
    return KIND_BY_NAME[plain.replace("blocks.text_ffn.", "blocks.ffn.")]


def width_ratio(config: RunConfig) -> float:
    """Returns rho, the width over the base width; 1 in the standard parametrization."""
    base = config.model.base_width
    return 1.0 if base is None else config.model.width / base


def initial_factor(config: RunConfig, name: str) -> float:
    """Returns the number by which the first values of the parameter `name` are multiplied after their standard draw."""
    base, model = config.model.base_width, config.model
    if base is None:
        return 1.0
    factor, drawn = 1.0, _STANDARD_STD.get(name)
    if drawn is not None:
        patch = model.patch_size**2 * config.data.channels
        factor = width_ratio(config) ** KINDS[kind_of(name)].std_power
        factor = float(factor * drawn(base, patch) / drawn(model.width, patch))
    return factor


def rate_factor(config: RunConfig, name: str) -> float:
    """Returns the number by which the learning rate of the parameter `name` is multiplied."""
    base = config.model.base_width
    if base is None:  # without one there is no rule to look up, and every module may be optimized
        return 1.0
    return float(width_ratio(config) ** KINDS[kind_of(name)].rate_power)


@dataclass(frozen=True)
class OptimizerConstants:
    """Holds the constants of the optimizer that a run uses, after the rule of length."""

    learning_rate: float
    weight_decay: float
    epsilon: float
    beta1: float
    beta2: float


def followed_length(config: RunConfig) -> OptimizerConstants:
    """Returns the constants of `config.optim`, adapted to the number of steps where `rate_by_length` is set.

    The square-root rule of Complete-muE (arXiv 2605.23893), with rho_B and rho_D the batch and the number of samples
    over those of the tuned run: rate and decay x sqrt(rho_B / rho_D), epsilon x sqrt(rho_D / rho_B), and 1 - beta x
    rho_B / rho_D. Samples over batch are optimizer steps, so that rho_D / rho_B is this run's steps over the tuned
    run's, which is all that `rate_by_length` has to say.
    """
    optim = config.optim
    if optim.rate_by_length is None:
        return OptimizerConstants(optim.learning_rate, optim.weight_decay, optim.epsilon, optim.beta1, optim.beta2)
    shorter = steps_ratio(config)
    root = shorter**0.5
    return OptimizerConstants(
        learning_rate=optim.learning_rate * root,
        weight_decay=optim.weight_decay * root,
        epsilon=optim.epsilon / root,
        beta1=max(0.0, 1 - (1 - optim.beta1) * shorter),
        beta2=max(0.0, 1 - (1 - optim.beta2) * shorter),
    )


def steps_ratio(config: RunConfig) -> float:
    """Returns the optimizer steps of the tuned run over those of this run; 1 without `rate_by_length`."""
    tuned = config.optim.rate_by_length
    return 1.0 if tuned is None else tuned * config.train.batch_images / config.total_images
