"""The learning rate as a function of the images seen: linear warm-up, then constant, a half cosine to zero, or `wsd`.

`wsd` is a warm-up, a constant rate (stable) and a cooldown (decay) to zero: Hu et al. 2024, arXiv 2404.06395,
section 4, with the shape 1 - sqrt(x) of Haegele et al. 2024, arXiv 2405.18392, where x is the share of the cooldown
that is over.
"""

from __future__ import annotations

import math

from experiments.config.cooldown import cooldown_start
from experiments.config.parametrization import followed_length
from experiments.config.schema import RunConfig


def learning_rate(config: RunConfig, images_seen: int) -> float:
    """Returns the learning rate of the step that begins after `images_seen` images."""
    optim, total = config.optim, config.train.images
    largest = followed_length(config).learning_rate
    after_step = images_seen + config.train.batch_images
    warm = min(1.0, after_step / optim.warmup_images) if optim.warmup_images else 1.0
    if optim.schedule == "constant":
        return largest * warm
    if (start := cooldown_start(config)) is not None:
        over = max(0, images_seen - start) / (config.total_images - start)
        return largest * warm * (1 - (over if optim.cooldown_shape == "linear" else math.sqrt(over)))
    # The cosine begins after the warm-up, where `left` is 1, and ends with the run, where it is 0.
    left = max(0.0, total - images_seen) / max(1, total - optim.warmup_images)
    return largest * warm * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
