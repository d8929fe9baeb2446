"""Lists every sampler in one table: its label, its source, and how often it calls the network.

A sampler is one row of `SAMPLERS` and one function of `experiments/flow/`, which the row names. Each works on the
velocity that every prediction implies (`experiments/flow/objective_contract.py`), and therefore serves every objective.
The table is free of torch, because the command line reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.config.objectives import OBJECTIVES, RECTIFIED_FLOW
from experiments.errors import ConfigError


@dataclass(frozen=True)
class SamplerRow:
    """Describes one sampler."""

    name: str
    label: str
    source: str
    """The paper that the sampler is from."""
    about: str
    """The few words that a help text has for it."""
    implementation: str
    """The function as "module:function"; `experiments.flow.samplers.Sampler` is its type."""
    calls_a_step: int = 1


SAMPLERS: dict[str, SamplerRow] = {
    row.name: row
    for row in (
        SamplerRow("euler", "Euler", "Euler's method", "of the first order", "experiments.flow.samplers:euler"),
        SamplerRow(
            "heun", "Heun", "Karras et al. 2022, algorithm 1", "of second order with two calls of the model a step",
            "experiments.flow.samplers:heun", calls_a_step=2,
        ),
        SamplerRow(
            "ddim", "DDIM", "Song et al. 2020 (arXiv 2010.02502)", "the same step as euler",
            "experiments.flow.samplers:euler",
        ),
        SamplerRow(
            "ddpm", "Ancestral DDPM", "Ho et al. 2020", "which adds fresh noise in every step",
            "experiments.flow.ancestral:ancestral",
        ),
        SamplerRow(
            "dpm_solver_pp", "DPM-Solver++ (2M)", "Lu et al. 2022 (arXiv 2211.01095)",
            "(2M), of second order with one call a step", "experiments.flow.dpm_solver:dpm_solver_pp",
        ),
    )
}  # fmt: skip


def require_steps(num_steps: int, objective: str, key: str) -> None:
    """Raises `ConfigError` for more steps of a sampler than the objective has noise levels; `key` is what says so."""
    most = OBJECTIVES[objective].most_steps
    if most is not None and num_steps > most:
        raise ConfigError(
            f"{key}{num_steps} does not fit flow.objective={objective}, which has {most} noise levels.",
            f"Use {key}{most}, or fewer.",
        )


def require_shift(shift: float | None, objective: str) -> None:
    """Raises `ConfigError` for a timestep shift with an objective whose samplers have another grid of noise levels."""
    if shift not in (None, 1) and objective != RECTIFIED_FLOW:
        raise ConfigError(
            f"--shift {shift:g} does not fit flow.objective={objective}, whose noise levels have a grid of their own.",
            "Leave out --shift.",
        )
