"""Refuses weights that do not fit a run that is to begin from them (`train.init_from`).

Each mistake is one line that names the setting, its value here and in the parent, and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.config.block_sizes import hidden_width
from experiments.config.blocks import block_of
from experiments.config.data_sets import captions_of
from experiments.config.router_sizes import mixes_blocks
from experiments.config.schema import ModelConfig, RunConfig
from experiments.config.values import shown
from experiments.errors import ConfigError
from experiments.records.parent_weights import ParentWeights
from experiments.text import printable, shortened

NOT_SHAPES = {
    "name", "sparse_layers", "ffn_factor", "base_width", "head_size", "position_side", "text_width", "text_layers",
}  # fmt: skip
"""Settings of the model in which parent and child may differ, or which are compared by themselves."""
OF_TOKEN_CAPTIONS = (
    "model.text_width",
    "model.text_layers",
    "data.vocab_size",
    "data.caption_length",
    "data.num_classes",
)
OF_FEATURES = ("data.text_width", "data.pooled_width")
ONLY_WITH = {"init_noise": "noise", "init_drop": "drop"}
"""The settings that one way to make experts reads, and that way."""
MAX_PATH = 200
"""The most characters of a path in a message."""


def check_init(config: RunConfig) -> None:
    """Raises `ConfigError` for settings of `train.init_from` that do not fit each other, whatever the parent is."""
    train = config.train
    if train.init_from is None:
        for name, field in type(train).model_fields.items():
            value = getattr(train, name)
            if name.startswith("init_") and value != field.default:
                raise ConfigError(
                    f"train.{name}={shown(str(value))} has no meaning without train.init_from.",
                    f"Name a run, or leave out train.{name}.",
                )
    for name, needed in ONLY_WITH.items():
        value = getattr(train, name)
        if train.init_experts != needed and value != type(train).model_fields[name].default:
            raise ConfigError(
                f"train.{name}={value:g} has no meaning with train.init_experts={train.init_experts}.",
                f"Use train.init_experts={needed}, or leave out train.{name}.",
            )
    if train.init_optimizer == "carried" and train.init_weights == "ema":
        raise ConfigError(
            "train.init_optimizer=carried does not fit train.init_weights=ema: the state of an optimizer belongs to "
            "the raw weights.",
            "Use train.init_weights=raw, or train.init_optimizer=fresh.",
        )


def upcycled_layers(config: RunConfig, theirs: RunConfig) -> tuple[int, ...]:
    """Returns the blocks whose feed-forward has experts here and is dense in the parent."""
    return tuple(layer for layer in _routed(config) if layer not in _routed(theirs))


def require_source(config: RunConfig, theirs: RunConfig, parent: ParentWeights) -> None:
    """Raises `ConfigError` where the parent has no state of the optimizer that this run could carry on."""
    if config.train.init_optimizer != "carried":
        return
    if parent.checkpoint is None:
        raise ConfigError(
            f"train.init_optimizer=carried does not fit train.init_from={_place(config)}: exported weights have no "
            "state of the optimizer.",
            "Use train.init_optimizer=fresh, or name the run itself.",
        )
    if config.optim.name != theirs.optim.name:
        raise _misfit(config, "optim.name", config.optim.name, theirs.optim.name, "train.init_optimizer=fresh")


def require_fit(config: RunConfig, theirs: RunConfig) -> None:
    """Raises `ConfigError` where the weights of a run with the settings `theirs` do not fit the model of `config`."""
    for key in _compared(config, theirs):
        mine, his = (_setting(each, key) for each in (config, theirs))
        if mine != his:
            raise _misfit(config, key, mine, his)
    has_lost_blocks = mixes_blocks(theirs) and not mixes_blocks(config)
    if has_lost_blocks or not set(_routed(theirs)) <= set(_routed(config)):
        key = "model.sparse_layers" if _routed(config) and not has_lost_blocks else "routing.name"
        raise _misfit(config, key, *(_setting(each, key) for each in (config, theirs)))
    if theirs.routing.unconditional_expert and not config.routing.unconditional_expert:
        raise _misfit(config, "routing.unconditional_expert", False, True)
    _require_same_experts(config, theirs)
    _require_upcycling(config, theirs)


def _compared(config: RunConfig, theirs: RunConfig) -> Iterator[str]:
    """Yields the settings that must be equal, so that tensors have the same shapes and blocks the same meaning."""
    yield from (f"model.{name}" for name in ModelConfig.model_fields if name not in NOT_SHAPES)
    yield from ("data.channels", "routing.text_experts")
    yield from ("flow.objective", "flow.prediction", "flow.learned_sigma")  # what the head predicts
    encoders = [captions_of(each).encoder_sizes(each.model) for each in (config, theirs)]
    if encoders[0] != encoders[1]:
        yield from (*OF_TOKEN_CAPTIONS, *OF_FEATURES)
    if len(_routed(config)) < config.model.num_layers:
        yield "model.ffn_factor"


def _require_same_experts(config: RunConfig, theirs: RunConfig) -> None:
    """Checks the experts of blocks that have some in both."""
    if not set(_routed(config)) & set(_routed(theirs)):
        return
    for key in ("expert", "expert_factor", "shared_factor", "expert_bias"):
        mine, his = getattr(config.routing, key), getattr(theirs.routing, key)
        if mine != his and not (key in ("shared_factor", "expert_bias") and not his):
            raise _misfit(config, f"routing.{key}", mine, his)
    if config.routing.num_experts < theirs.routing.num_experts:
        raise _misfit(config, "routing.num_experts", config.routing.num_experts, theirs.routing.num_experts)


def _require_upcycling(config: RunConfig, theirs: RunConfig) -> None:
    """Checks that the experts of blocks that are dense in the parent can be made of its feed-forward."""
    routing, init = config.routing, config.train.init_experts
    layers = upcycled_layers(config, theirs)
    if not layers:
        if init != "copy":
            raise ConfigError(
                f"train.init_experts={init} does not fit train.init_from={_place(config)}: no block has "
                "experts here and a dense feed-forward there.",
                "Leave out train.init_experts.",
            )
        return
    row = block_of(theirs)
    if row.activation != "gelu" or row.has_biases:
        raise ConfigError(
            f"train.init_from={_place(config)} has dense feed-forwards of {row.activation}"
            f"{' with biases' if row.has_biases else ''}, of which no experts can be made.",
            "Name a run whose block has plain gelu feed-forwards, or train without train.init_from.",
        )
    if routing.expert != "gelu":
        raise _misfit(config, "routing.expert", routing.expert, "gelu")
    assert routing.expert_factor is not None
    narrow, wide = hidden_width(config, routing.expert_factor), hidden_width(theirs, theirs.model.ffn_factor)
    or_split = ", or train.init_experts=split" if wide > narrow else ""
    given = f"routing.expert_factor={routing.expert_factor:g}"
    if init != "split" and narrow != wide:
        raise ConfigError(
            f"{given} does not fit train.init_experts={init}: experts are {narrow} wide, and the feed-forward of "
            f"train.init_from={_place(config)} is {wide} wide.",
            f"Use routing.expert_factor={theirs.model.ffn_factor:g}{or_split}.",
        )
    if init == "split" and (wide % narrow or wide == narrow):
        raise ConfigError(
            f"{given} does not fit train.init_experts=split: experts that are {narrow} wide are no equal parts of a "
            f"feed-forward that is {wide} wide.",
            f"Use routing.expert_factor={theirs.model.ffn_factor / 2:g}, or train.init_experts=copy.",
        )
    if init == "split" and routing.num_experts % (wide // narrow):
        raise ConfigError(
            f"routing.num_experts={routing.num_experts} does not fit train.init_experts=split: a feed-forward has "
            f"{wide // narrow} parts.",
            f"Use routing.num_experts={-(-routing.num_experts * narrow // wide) * (wide // narrow)}.",
        )


def _routed(config: RunConfig) -> tuple[int, ...]:
    """Returns the blocks whose feed-forward has experts. Those of Switch-DiT lie beside dense feed-forwards."""
    return () if mixes_blocks(config) else config.sparse_layer_indices


def _setting(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _place(config: RunConfig) -> str:
    return shortened(printable(config.train.init_from or ""), MAX_PATH)


def _misfit(config: RunConfig, setting: str, mine: Any, his: Any, otherwise: str = "") -> ConfigError:
    instead = f"or use {otherwise}." if otherwise else "or train without train.init_from."
    return ConfigError(
        f"{setting}={mine} does not fit train.init_from={_place(config)}, whose {setting} is {his}.",
        f"Use {setting}={his}, {instead}",
    )
