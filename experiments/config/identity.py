"""Names a run by a hash of the settings that change its results, and by a readable name that contains the hash.

The hash leaves out what is measured on samples meanwhile (`ONLY_WATCHES`), where the record is mirrored (`wandb`), when
it is saved and written (`checkpoint`, `log`), on how many processes it is computed (`parallel`, but `parallel.world`
counts where routing groups follow it), by which implementation (`ONLY_HOW`) and where its data set lies (`MAY_MOVE`).
Two configs with the same id give the same losses, up to rounding. The hash itself is in `experiments/settings_id.py`,
because whoever reads a run computes it too.
"""

from __future__ import annotations

from experiments.config.schema import RunConfig
from experiments.settings_id import LEFT_OUT, MAY_MOVE, ONLY_HOW, ONLY_WATCHES, settings_id

__all__ = ["LEFT_OUT", "MAY_MOVE", "ONLY_HOW", "ONLY_WATCHES", "config_id", "run_name"]


def config_id(config: RunConfig) -> str:
    """Returns 10 hex digits of the SHA-256 of the canonical JSON of every setting that changes results."""
    counted = config.model_dump(exclude=set(LEFT_OUT))
    return settings_id({**counted, "parallel": {"world": config.parallel.world}})


def run_name(config: RunConfig, identity: str | None = None) -> str:
    """Returns a file-safe name such as `nano-expert_choice-8e-c2-g1-s0-1a2b3c` or `nano-dense-s0-1a2b3c`.

    e experts, k experts a token picks, c capacity factor (left out: no limit), g images per routing group, s seed.
    `identity`: the config id, where it is known already.
    """
    digits = (identity or config_id(config))[:6]
    return "-".join([config.model.name, *_routing_parts(config), f"s{config.seed}", digits])


def _routing_parts(config: RunConfig) -> list[str]:
    routing = config.routing
    if routing.name == "dense":
        return [routing.name]
    parts = [routing.name, f"{routing.num_experts}e"]
    parts += [f"k{routing.top_k}"] if routing.top_k is not None else []
    parts += [f"c{routing.capacity_factor:g}"] if routing.capacity_factor is not None else []
    return [*parts, f"g{routing.group_images}"]
