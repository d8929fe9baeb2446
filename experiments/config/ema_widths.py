"""The widths of the averages of the weights that training keeps with `train.ema=power`.

A width is the standard deviation of an average's weighting over progress, relative to the progress at its end, the
sigma_rel of EDM2 (Karras et al. 2024, arXiv 2312.02696, section 3.1). Averages of two widths in every checkpoint are
enough to reconstruct averages of other widths (section 3.2).
"""

from __future__ import annotations

from experiments.config.schema import RunConfig

POWER_WIDTHS = (0.05, 0.10)
"""EDM2's choice. The first one is the average that is evaluated, sampled from and exported unless a width is named."""


def power_widths(config: RunConfig) -> tuple[float, ...]:
    """Returns the widths of the power-function averages that training keeps; none with `train.ema=halflife`."""
    return POWER_WIDTHS if config.train.ema == "power" else ()
