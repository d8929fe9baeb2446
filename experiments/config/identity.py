"""What names a run: a hash of the settings that change its numbers, and a readable name that carries it.

Left out are what is measured on samples meanwhile (`ONLY_WATCHES`), where the record is mirrored (`wandb`), when it is
saved and written (`checkpoint`, `log`), on how many processes it is computed (`parallel`, but for `parallel.world`
where routing groups follow it), by which of two implementations (`ONLY_HOW`) and where its data set lies (`MAY_MOVE`).
Two configs with the same id give the same losses, up to rounding.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from experiments.config.schema import RunConfig

LEFT_OUT = frozenset({"wandb", "checkpoint", "parallel", "log"})
ONLY_WATCHES = frozenset({"metric_images"})
"""Settings of `eval` that add measurements and change none."""
ONLY_HOW = frozenset({"implementation"})
"""Settings of `train` that change how fast the same numbers come."""
MAY_MOVE = frozenset({"path"})
"""Settings of `data` that do not say what the data are: `data.fingerprint` does."""


def config_id(config: RunConfig) -> str:
    """10 hex digits of the SHA-256 over the canonical JSON of every setting that changes the numbers."""
    parts = {"eval": set(ONLY_WATCHES), "train": set(ONLY_HOW), "data": set(MAY_MOVE)}
    left_out: dict[str, Any] = {**dict.fromkeys(LEFT_OUT, True), **parts}
    settings = _canonical(config.model_dump(exclude=left_out))
    if config.parallel.world > 1 and groups_follow_processes(config):
        settings["parallel"] = {"world": config.parallel.world}
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def groups_follow_processes(config: RunConfig) -> bool:
    """Whether a training run on another number of processes has other routing groups, and with them other losses.

    With `routing.group_images=batch` a group is what one process takes at a time. It decides who competes for slots,
    and over whom a balance loss counts: without a capacity and without a balance loss it decides nothing. Validation
    and sampling have batches of the same images on any number of processes.
    """
    routing = config.routing
    matters = routing.capacity_factor is not None or routing.balance_loss_weight > 0
    return routing.name != "dense" and routing.group_images == "batch" and matters


def run_name(config: RunConfig, identity: str | None = None) -> str:
    """A file-safe name: `nano-expert_choice-8e-c2-g1-s0-1a2b3c`, `nano-dense-s0-1a2b3c`.

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


def _canonical(value: Any) -> Any:
    """Whole floats as integers, so that 2 and 2.0 are one setting."""
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
