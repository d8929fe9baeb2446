"""Ancestral sampling of DDPM: every step draws from the reverse process (Ho et al. 2020, algorithm 2).

The step from t to s < t has the mean of q(x_s | x_t, x_0) at the predicted image, and the variance of that posterior
(DDPM's smaller choice) or, where the network has learned one, the variance between the posterior's and that of the
forward step (Nichol and Dhariwal 2021, equation 15). It is written for any pair of noise levels (Kingma et al. 2021,
arXiv 2107.00630, appendix A), so that steps may be left out and every objective can be sampled from.

Legend: B images, C channels, H, W height and width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from experiments.flow.objective_contract import Objective, Predicted
from experiments.flow.samplers import Field, full_times


def ancestral(field: Field, noise_BCHW: Tensor, times: list[float], objective: Objective) -> Iterator[Tensor]:
    """Yields x after each step. The noise of the steps follows from the first noise, for every image by itself."""
    generators, x = _generators(noise_BCHW), times[0] * noise_BCHW
    for start, stop in pairwise(times):
        mean, std = reverse_step(x, field(x, full_times(x, start)), start, stop)
        fresh = torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators])
        x = mean + std * fresh.to(x) if stop > 0 else mean
        yield x


def reverse_step(x: Tensor, predicted: Predicted, start: float, stop: float) -> tuple[Tensor, Tensor | float]:
    """Returns mean and standard deviation of x at `stop` on the straight path.

    The arithmetic is that of alpha^2 + sigma^2 = 1, on which the bounds of the learned variance are defined.
    """
    image = x - start * predicted.velocity_BCHW
    norm, next_norm = (math.hypot(1 - time, time) for time in (start, stop))
    (alpha, sigma), (next_alpha, next_sigma) = (
        ((1 - start) / norm, start / norm),
        ((1 - stop) / next_norm, stop / next_norm),
    )
    ratio = alpha / next_alpha
    forward = sigma**2 - (ratio * next_sigma) ** 2
    share = next_sigma**2 / sigma**2
    mean = next_norm * (ratio * share * x / norm + next_alpha * forward / sigma**2 * image)
    posterior = forward * share
    if predicted.variance_BCHW is None or stop == 0:
        return mean, next_norm * math.sqrt(posterior)
    log_variance = torch.lerp(
        torch.full_like(x, math.log(posterior)),
        torch.full_like(x, math.log(forward)),
        (predicted.variance_BCHW + 1) / 2,
    )
    return mean, next_norm * torch.exp(log_variance / 2)


def _generators(noise_BCHW: Tensor) -> list[torch.Generator]:
    """Returns a generator for each image, seeded by a hash of its first noise.

    An image is then the same in a batch of any size and on every device.
    """
    digests = [hashlib.blake2b(noise.numpy().tobytes(), digest_size=8).digest() for noise in noise_BCHW.cpu()]
    return [torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1) for digest in digests]
