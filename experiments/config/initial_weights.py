"""Decides what a run takes from the weights of another one (`train.init_from`), without reading a tensor.

Every parameter has one of four beginnings: it is *taken* as it is; *copied* to the experts, from a dense feed-forward
(sparse upcycling: Komatsuzaki et al. 2023, arXiv 2212.05055) or from fewer experts; *extended*, where a router has
columns for more experts; or *new*, as the seed draws it. `train.init_experts` says what an expert gets of a dense
feed-forward: all of its hidden units; all, with Gaussian noise relative to the weights (a variant in Komatsuzaki et
al.); one of n equal parts, in turn (virtual groups: He et al. 2024, arXiv 2410.07524); or all but a random share that
is drawn anew (Drop-Upcycling: Nakamura et al. 2025, arXiv 2502.19261).

At another resolution, positions run over the grid of the parent, and t is shifted by the square root of the ratio of
tokens (SD3, arXiv 2403.03206, equation 23), unless the settings say otherwise. `training/first_weights.py` makes the
tensors, and `init_checks.py` refuses what does not fit.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.config.block_sizes import hidden_width
from experiments.config.init_checks import require_fit, require_source, upcycled_layers
from experiments.config.objectives import OBJECTIVES
from experiments.config.router_sizes import mixes_blocks
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.config.stored import stored_config
from experiments.config.tensors import tensor_sizes
from experiments.records.parent_weights import ParentWeights, find_parent

Beginning = Literal["taken", "copied", "extended", "new"]

ONLY_LEARNING = ("threshold_decay", "balance_scope")
"""The settings of routing beside the weights of losses that change how a model learns, and not what it computes."""
COMPLETED = {"model": ("position_side",), "flow": ("time_shift",), "train": ("init_fingerprint",)}
"""The settings that follow from the parent where they are left open."""


def with_parent(config: RunConfig, given: Container[str] = (), begun: Mapping[str, Any] | None = None) -> RunConfig:
    """Returns `config`, completed by the parent that `train.init_from` names; `given` are the settings of the user.

    `begun` are the settings of a run that has begun, which are taken in place of the parent: it may be gone. Raises
    `ConfigError` where the weights do not fit, and the errors of `find_parent` where there are none.
    """
    path = config.train.init_from
    if path is None or config.train.init_fingerprint is not None:
        return config
    if begun is not None and begun.get("train", {}).get("init_from") == path:
        changes = {section: {name: begun[section].get(name) for name in names} for section, names in COMPLETED.items()}
    else:
        parent = find_parent(Path(path), config.train.init_weights)
        theirs = require_parent_fits(config, parent)
        changes = {"train": {"init_fingerprint": parent.fingerprint}, **_resolution(config, theirs)}
    for section, values in changes.items():
        open_values = {k: v for k, v in values.items() if v is not None and f"{section}.{k}" not in given}
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=open_values)})
    return config


def require_parent_fits(config: RunConfig, parent: ParentWeights) -> RunConfig:
    """Returns the settings of the parent. Raises `ConfigError` where its weights do not fit those of `config`."""
    theirs = stored_config(parent.record.config, parent.description, parent.record.plugin_names)
    require_source(config, theirs, parent)
    require_fit(config, theirs)
    return theirs


def _resolution(config: RunConfig, theirs: RunConfig) -> dict[str, dict[str, float]]:
    """Returns the settings by which a model meets images with another number of tokens."""
    sides = [each.data.image_size // each.model.patch_size for each in (config, theirs)]
    if sides[0] == sides[1]:
        span: dict[str, float] = {"position_side": theirs.model.position_side} if theirs.model.position_side else {}
        return {"model": span, "flow": {"time_shift": theirs.flow.time_shift}}
    # The number of tokens is the square of the side, so that the root of their ratio is the ratio of sides.
    is_read = "time_shift" in OBJECTIVES[config.flow.objective].defaults
    shift = theirs.flow.time_shift * sides[0] / sides[1] if is_read else 1.0
    return {"model": {"position_side": theirs.position_side}, "flow": {"time_shift": shift}}


def beginnings(config: RunConfig, theirs: RunConfig) -> dict[str, Beginning]:
    """Returns how every parameter of `config` begins, by name, from the weights of a run with the settings `theirs`."""
    ours = {size.name: size.elements for size in tensor_sizes(config)}
    found = {size.name: size.elements for size in tensor_sizes(theirs)}
    reads_alike = all(getattr(config.routing, key) == getattr(theirs.routing, key) for key in ("input", "form"))
    return {name: _beginning(name, elements, found, reads_alike) for name, elements in ours.items()}


def _beginning(name: str, elements: int, found: Mapping[str, int], reads_alike: bool) -> Beginning:
    if ".router." in name and not reads_alike:
        return "new"
    if found.get(name) == elements:
        return "taken"
    block, _, part = name.partition(".ffn.")
    if part.startswith("experts.w_"):
        return "copied"
    if part.startswith("experts.b_") and name in found:
        return "copied"
    if part == "router.weight_DE" and name in found:
        return "extended"
    matrix = part.removeprefix("unconditional.")
    return "copied" if matrix != part and found.get(f"{block}.ffn.{matrix}") == elements else "new"


def said_of_beginnings(
    config: RunConfig, theirs: RunConfig, parent: ParentWeights, counts: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """Returns a line that says what is taken and what is new, and one where the first loss differs from the parent's.

    `counts` are the numbers of parameters by beginning and part.
    """
    parts = [
        f"{beginning}: {', '.join(f'{part} {count}' for part, count in counts[beginning].items())}"
        for beginning in get_args(Beginning)
        if beginning in counts
    ]
    first = (
        f"First weights: {parent.weights} of {parent.record.name} after {parent.images_seen:,} images, tensors "
        f"{'; '.join(parts)}."
    )
    because = function_changes(config, theirs)
    if because is None:
        return [first]
    return [first, f"The first loss differs from that of {parent.record.name}: {because}."]


def num_parts(config: RunConfig, theirs: RunConfig) -> int:
    """Returns the number of experts that make up one dense feed-forward: 1 unless `train.init_experts` is `split`."""
    if config.train.init_experts != "split":
        return 1
    assert config.routing.expert_factor is not None
    return hidden_width(theirs, theirs.model.ffn_factor) // hidden_width(config, config.routing.expert_factor)


def gate_sum(config: RunConfig) -> float | None:
    """Returns the sum of the gates of every token, where it is the same for all tokens in training; None elsewhere."""
    routing, row = config.routing, ROUTERS[config.routing.name]
    scale = routing.gate_scale
    if scale == "auto" or row.rule == "soft" or routing.capacity_warmup_images:
        return None
    takes_all = row.rule == "experts" and routing.capacity_factor == routing.num_experts
    if not takes_all and (row.rule not in ("tokens", "fixed") or routing.capacity_factor is not None):
        return None  # some tokens have no expert
    has_unit_gates = row.has_unit_gates and (row.rule == "fixed" or routing.top_k != 1)
    is_softmax = takes_all and routing.gating == "softmax"
    return scale if routing.gate_norm == "token" or has_unit_gates or is_softmax else None


def output_factor(config: RunConfig, theirs: RunConfig) -> float:
    """Returns the factor on the output of upcycled experts, by which their sum is that of the dense feed-forward.

    Each of n parts enters with 1/n of the sum of gates. Where that sum is not known, it is taken for 1.
    """
    return num_parts(config, theirs) / (gate_sum(config) or 1.0)


def function_changes(config: RunConfig, theirs: RunConfig) -> str | None:
    """Returns why the first loss differs from the parent's, or None where the two models are the same function."""
    if config.num_tokens != theirs.num_tokens:
        return f"images have {config.num_tokens} tokens in place of {theirs.num_tokens}"
    if upcycled_layers(config, theirs):
        return _why_upcycling_changes(config, theirs)
    if mixes_blocks(config) and not mixes_blocks(theirs):
        return None  # experts that change blocks begin at zero
    for key in type(config.routing).model_fields:
        mine, his = (getattr(each.routing, key) for each in (config, theirs))
        # Biases and the outputs of shared experts begin at zero.
        begins_at_zero = key in ("shared_factor", "expert_bias") and not his
        if mine != his and not (begins_at_zero or key in ONLY_LEARNING or key.endswith("_loss_weight")):
            return f"routing.{key} is {mine} in place of {his}"
    return None


def _why_upcycling_changes(config: RunConfig, theirs: RunConfig) -> str | None:
    routing, row, train = config.routing, ROUTERS[config.routing.name], config.train
    if row.rule == "soft":
        return "experts process mixtures of tokens"
    if train.init_experts == "noise" and train.init_noise:
        return f"experts are copies with noise of train.init_noise={train.init_noise:g}"
    if train.init_experts == "drop" and train.init_drop:
        return f"experts have train.init_drop={train.init_drop:g} of their hidden units drawn anew"
    if row.rule in ("tokens", "fixed") and routing.capacity_factor is not None:
        return f"routing.capacity_factor={routing.capacity_factor:g} may drop tokens"
    if row.rule not in ("tokens", "fixed") and routing.capacity_factor != routing.num_experts:
        return f"with routing.name={routing.name} some tokens have no expert"
    if gate_sum(config) is None:
        return "the gates of a token do not add up to 1"
    parts = num_parts(config, theirs)
    if parts > 1 and (row.rule == "fixed" or (routing.top_k is not None and routing.top_k % parts)):
        return f"routing.top_k={routing.top_k} does not take all {parts} parts of a feed-forward"
    if parts > 1 and routing.unconditional_expert:
        return "the unconditional expert is as narrow as a part of a feed-forward"
    return None
