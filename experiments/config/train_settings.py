"""The settings of training: length, batches, precision, averages of the weights, and what a run begins from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from experiments.config.execution_settings import Settings, absent_at
from experiments.config.limits import BatchImages, Halflife, Images, Layers, LossWeight, Share, Smoothing, Text


class TrainConfig(Settings):
    """Holds the settings of training. Its progress is counted in images."""

    images: Images = Field(38_400, description="length of training; rounded up to whole batches")
    batch_images: BatchImages = Field(32, description="over all processes and accumulation steps")
    accumulation: BatchImages = Field(1, description="forward passes per optimizer step")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 where it is faster, which processors with AMX are from width 256 on; fp32 with ZeRO 0",
    )
    implementation: Literal["fast", "fused", "reference"] = Field(
        "fast", description="reference: plain operations; fused: experts' activation in their products (accelerators)"
    )
    mask_ratio: Smoothing = Field(0.0, description="share of the tokens dropped in training")
    repa_weight: LossWeight = Field(
        **absent_at(0.0), description="of REPA's loss, which compares tokens with features of the clean image"
    )
    repa_layer: Layers | None = Field(
        **absent_at(None), description="block after which REPA compares tokens; None: at two sevenths of the depth"
    )
    caption_dropout: Share = Field(0.1, description="for classifier-free guidance")
    ema: Literal["halflife", "power"] = Field(
        **absent_at("halflife"),
        description="moving average of the weights; power: two averages, from which others are made after training",
    )  # fmt: skip
    ema_halflife_images: Halflife = Field(
        2000.0, description="of the moving average of the weights with train.ema=halflife"
    )
    init_from: Text | None = Field(
        **absent_at(None),
        description="folder of a finished run, a checkpoint or exported weights, which the run begins from",
    )
    init_fingerprint: Text | None = Field(**absent_at(None), description="of the files of these weights")
    init_weights: Literal["ema", "raw"] = Field(**absent_at("ema"), description="which of its weights are taken")
    init_experts: Literal["copy", "noise", "split", "drop"] = Field(
        **absent_at("copy"),
        description="what experts get of a dense feed-forward: all, all with noise, a part each, or all but what is "
        "drawn anew",
    )
    init_noise: Share = Field(
        **absent_at(0.01), description="with train.init_experts=noise: of the standard deviation of the weights"
    )
    init_drop: Share = Field(
        **absent_at(0.5), description="with train.init_experts=drop: share of the hidden units drawn anew"
    )
    init_optimizer: Literal["fresh", "carried"] = Field(
        **absent_at("fresh"), description="whether the optimizer begins anew or with the state of that run"
    )

    @property
    def is_fast(self) -> bool:
        """Says whether operations have their fast forms, which `fused` has too, and not those of the reference."""
        return self.implementation != "reference"
