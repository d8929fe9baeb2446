"""DPM-Solver++ of second order with several steps, 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

With lambda = ln(alpha / sigma), a step solves the linear part of the equation exactly and extrapolates the predicted
image linearly in lambda from the last two calls. The first step and that to t = 0 are of first order: the former has no
earlier call, and lambda is infinite at the end of the latter. The solver does not depend on the scale of x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from experiments.flow.objective_contract import Objective
from experiments.flow.samplers import Field, full_times


def dpm_solver_pp(field: Field, noise_BCHW: Tensor, times: list[float], objective: Objective) -> Iterator[Tensor]:
    """Yields x after each step; the field is called once a step."""
    x = times[0] * noise_BCHW
    earlier: Tensor | None = None
    last_step = math.inf
    for start, stop in pairwise(times):
        image = x - start * field(x, full_times(x, start)).velocity_BCHW
        step, ahead = _log_snr(stop) - _log_snr(start), image
        # An infinite step, from pure noise or to the image, leaves nothing to extrapolate over.
        if earlier is not None and math.isfinite(step) and math.isfinite(last_step):
            ahead = image + step / (2 * last_step) * (image - earlier)
        x = stop / start * x + (1 - stop - (1 - start) * stop / start) * ahead
        earlier, last_step = image, step
        yield x


def _log_snr(time: float) -> float:
    """Returns lambda = ln(alpha / sigma), which is infinite at both ends of the path."""
    if time in (0.0, 1.0):
        return math.inf if time == 0 else -math.inf
    return math.log((1 - time) / time)
