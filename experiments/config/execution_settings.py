"""Defines the base class of all groups of settings, and the groups that change how a run is done but not its results.

They are not part of the config id (`identity.py`). `schema.py` has the groups that define a run.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from experiments.config.limits import Images, Steps, Text, World


class Settings(BaseModel):
    """The base class of all groups of settings, which is frozen and refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def absent_at(default: Any) -> dict[str, Any]:
    """Returns the arguments of a field that is absent from what is stored where it has its `default`.

    Earlier versions did not have the setting, so that runs which do not use it keep their config id.
    """
    return {"default": default, "exclude_if": lambda value: value == default}


class CheckpointConfig(Settings):
    """Holds the settings of checkpoints; the last `keep`, and that before a cooldown (`cooldown.py`), are kept."""

    every_images: Images = Field(12_800, description="images between two checkpoints")
    keep: Steps = Field(2, description="checkpoints that stay")


ZeroStage = Literal["auto", 0, 1, 2, 3]


class ParallelConfig(Settings):
    """Holds the layout of processes. It does not change what a run computes, so it is not part of the config id.

    The exception is `world` with `routing.group_images=batch`, whose groups are those of one process (`identity.py`).
    """

    world: World = Field(1, description="processes")
    expert_parallel: World = Field(1, description="processes that the experts of a layer are spread over")
    zero_stage: ZeroStage = Field(
        "auto",
        description="what is sharded: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too; auto: 0 for one "
        "process in fp32, else 1",
    )
    activation_checkpointing: bool = Field(
        False, description="keep only each block's input for the backward pass and compute the rest again"
    )


class LogConfig(Settings):
    """Holds how often rows are written."""

    every_images: Images = Field(320, description="images between two rows of steps.jsonl")


class WandbConfig(Settings):
    """Holds the settings of the W&B mirror. `auto` is online where a key is configured, else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where a key is configured, else offline"
    )
    project: Text | None = Field(None, description="None: what WANDB_PROJECT or W&B's settings file says, else ecdit")
    entity: Text | None = Field(None, description="user or team; None: what W&B takes")
    group: Text | None = Field(None, description="name of a group of runs")
