"""Gives the keys of the caches of budgets and memories, since most runs of a sweep cost as much as another one.

A key is the config without what changes no cost. Only what the runs of a sweep often differ in is left out: a setting
that is not named here counts, so that a new one cannot be forgotten. Tests compare what the caches return with what is
computed, over a change of every setting.
"""

from __future__ import annotations

from collections.abc import Hashable

from experiments.config.schema import RunConfig

SECTIONS_LEFT_OUT = ("optim", "checkpoint", "log", "wandb", "seed")


def budget_key(config: RunConfig) -> Hashable:
    """Returns a key that configs share only where their budgets are the same."""
    train = config.train
    # The length of training changes the mean capacity where that falls over training, and no other cost of an image.
    if not config.routing.capacity_warmup_images:
        train = train.model_copy(update={"images": None})
    return config.model_copy(update={**dict.fromkeys(SECTIONS_LEFT_OUT), "train": train})


def memory_key(config: RunConfig) -> Hashable:
    """Returns a key that configs share only where a process of each holds as much memory."""
    optim = config.optim
    return (budget_key(config), optim.name, optim.momentum > 0, config.wandb.mode == "disabled")
