"""The schedule of warm-up, constant rate and cooldown (`optim.schedule=wsd`): where the cooldown begins.

Until then a run does not depend on its length, so that a longer run can continue from a shorter one's checkpoint at
that point (Hu et al. 2024, MiniCPM, arXiv 2404.06395, section 4; Haegele et al. 2024, arXiv 2405.18392). The part that
runs of several lengths share is their trunk. `training/schedule.py` computes the rate itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.errors import ConfigError

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig

WSD = "wsd"
COOLDOWN_DEFAULTS: Mapping[str, Any] = {"cooldown_share": 0.2, "cooldown_shape": "1-sqrt"}
"""Haegele et al. find that a cooldown of a fifth of the run reaches the loss of a cosine schedule, and that the shape
1 - sqrt(x) is better than 1 - x."""
NO_COOLDOWN: Mapping[str, Any] = {"schedule": "constant", "cooldown_share": None, "cooldown_shape": None}
"""Settings of `optim` for runs of a few steps, which are timed and have no room for a warm-up and a cooldown."""


def with_cooldown(optim: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of `optim`, where those of the cooldown that were left open have their defaults.

    Other schedules have none, so that their settings, and the ids of their configs, are those of earlier versions.
    """
    if optim.get("schedule") != WSD:
        return dict(optim)
    return {**optim, **{key: value for key, value in COOLDOWN_DEFAULTS.items() if optim.get(key) is None}}


def cooldown_start(config: RunConfig) -> int | None:
    """Returns the images after which the learning rate begins to decay, in whole batches; None for other schedules.

    The cooldown takes `optim.cooldown_share` of the batches, rounded, and at least one. It begins after the warm-up.
    """
    if config.optim.cooldown_share is None:
        return None
    batch = config.train.batch_images
    num_batches, num_warm = config.total_images // batch, -(-config.optim.warmup_images // batch)
    num_decaying = max(1, round(config.optim.cooldown_share * num_batches))
    return batch * max(num_batches - num_decaying, num_warm)


def check_cooldown(config: RunConfig) -> None:
    """Returns when the cooldown fits the run. Raises `ConfigError` where it has no batch, or the schedule has none."""
    optim, batch = config.optim, config.train.batch_images
    for key in COOLDOWN_DEFAULTS:
        value = getattr(optim, key)
        if value is not None and optim.schedule != WSD:
            raise ConfigError(
                f"optim.{key}={value} does not fit optim.schedule={optim.schedule}, which has no cooldown.",
                f"Use optim.schedule={WSD}, or leave it out.",
            )
    start = cooldown_start(config)
    if start is not None and start >= config.total_images:
        raise ConfigError(
            f"train.images={config.train.images} leaves no batch for the cooldown after "
            f"optim.warmup_images={optim.warmup_images}.",
            f"Use train.images={start + batch} or more, or a shorter warm-up.",
        )


def has_trunk(optim: Mapping[str, Any]) -> bool:
    """Returns whether runs with these settings of `optim` that differ in their length alone share a trunk.

    Runs of another schedule share nothing, and neither do runs whose rate follows their length
    (`optim.rate_by_length`).
    """
    return optim.get("schedule") == WSD and optim.get("rate_by_length") is None


def trunk_key(settings: Mapping[str, Any]) -> str | None:
    """Returns a key that is equal for the runs of a plan that can share a trunk, or None where none can.

    `settings` are those of a run, nested. Such runs differ in `train.images` alone.
    """
    if not has_trunk(settings["optim"]):
        return None
    train = {name: value for name, value in settings["train"].items() if name != "images"}
    return json.dumps({**settings, "train": train}, sort_keys=True)
