"""Names a run by a hash of the settings that change its results, and by a readable name that contains the hash.

The hash leaves out settings that do not change losses: metrics of samples during training (`ONLY_WATCHES`), the W&B
mirror (`wandb`), the intervals of checkpoints and rows (`checkpoint`, `log`), the number of processes (`parallel`, but
`parallel.world` counts where routing groups depend on it), the implementation (`ONLY_HOW`) and the paths of the data
set and of the first weights (`MAY_MOVE`), whose fingerprints count. Two configs with the same id give the same losses
up to rounding. `experiments/settings_id.py` computes the hash, because code that reads a run needs it too.
"""

from __future__ import annotations

from experiments.config.objectives import RECTIFIED_FLOW
from experiments.config.presets import PRESETS
from experiments.config.schema import RunConfig
from experiments.settings_id import LEFT_OUT, MAY_MOVE, ONLY_HOW, ONLY_WATCHES, settings_id

__all__ = ["LEFT_OUT", "MAY_MOVE", "ONLY_HOW", "ONLY_WATCHES", "config_id", "run_name"]


def config_id(config: RunConfig) -> str:
    """Returns 10 hex digits of the SHA-256 of the canonical JSON of every setting that changes results."""
    counted = config.model_dump(exclude=set(LEFT_OUT))
    return settings_id({**counted, "parallel": {"world": config.parallel.world}})


def run_name(config: RunConfig, identity: str | None = None) -> str:
    """Returns a file-safe name such as `nano-expert_choice-8e-c2-g1-s0-1a2b3c` or `nano-dit-ddpm-dense-s0-1a2b3c`.

    The block is named where it is not that of the preset, and the objective where it is not rectified flow.
    The letters stand for the number of experts (e), experts that a token picks (k), capacity factor (c, absent without
    a limit), images per routing group (g) and seed (s). `identity` is the config id, where it is known already.
    """
    digits = (identity or config_id(config))[:6]
    model, objective = config.model, config.flow.objective
    network = [model.name] if model.block == PRESETS[model.name].block else [model.name, model.block]
    network += [] if objective == RECTIFIED_FLOW else [objective]
    return "-".join([*network, *_routing_parts(config), f"s{config.seed}", digits])


def _routing_parts(config: RunConfig) -> list[str]:
    routing = config.routing
    if routing.name == "dense":
        return [routing.name]
    parts = [routing.name, f"{routing.num_experts}e"]
    parts += [f"k{routing.top_k}"] if routing.top_k is not None else []
    parts += [f"c{routing.capacity_factor:g}"] if routing.capacity_factor is not None else []
    return [*parts, f"g{routing.group_images}"]
