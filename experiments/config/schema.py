"""Defines the settings of a run as frozen pydantic models; each setting has the same name everywhere.

A config path (`routing.capacity_factor`) is the override on the command line, the column of the records and the key
in W&B. Building a `RunConfig` fills what the user left open from the preset of `model.name` and from the defaults of
`routing.name`; the result is complete, so a stored config does not change when a default does. Cross-checks between
settings live in `checks.py`, parsing in `overrides.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from experiments.config.blocks import DEFAULT_BLOCK, BlockName, DenseActivation, QkNorm
from experiments.config.cooldown import with_cooldown
from experiments.config.data_sets import DataSetName, fixed_settings
from experiments.config.execution_settings import (
    CheckpointConfig,
    LogConfig,
    ParallelConfig,
    Settings,
    WandbConfig,
    absent_at,
)
from experiments.config.flow_settings import FlowConfig
from experiments.config.limits import (
    BatchImages,
    CooldownShare,
    Epsilon,
    Guidance,
    Heads,
    HeldImages,
    HeldImagesOrNone,
    Images,
    ImagesOrNone,
    Layers,
    LearningRate,
    Norm,
    SampledImagesOrNone,
    Seed,
    Side,
    Smoothing,
    Steps,
    Text,
    TimeScale,
    Tokens,
    WeightDecay,
    Width,
    WidthFactor,
)  # fmt: skip
from experiments.config.objectives import with_objective
from experiments.config.placement import Placement, sparse_blocks
from experiments.config.presets import find_preset, model_defaults, with_heads
from experiments.config.routers import routing_defaults
from experiments.config.routing_settings import RoutingConfig
from experiments.config.train_settings import TrainConfig


class ModelConfig(Settings):
    """Holds the settings of the backbone. All but `name` come from the preset unless they are set."""

    name: str = Field(description="the preset that fills what is left open")
    width: Width = Field(description="features of a token")
    num_layers: Layers = Field(description="transformer blocks")
    num_heads: Heads = Field(description="heads of queries")
    num_kv_heads: Heads = Field(description="heads of keys and values, each shared by several heads of queries")
    patch_size: Side = Field(description="side of the square that becomes one token")
    sparse_layers: Placement = Field(
        description="blocks with experts: every second one, all, all but the first n and the last m (n:-m), or those "
        "with these numbers from 0"
    )
    text_width: Width = Field(description="features of a token of the text encoder that is trained with the model")
    text_layers: Layers = Field(description="blocks of that text encoder")
    ffn_factor: WidthFactor = Field(4.0, description="hidden width of a dense feed-forward over width")
    head_size: Width | None = Field(
        **absent_at(None), description="features of a head; when given, heads follow from the width"
    )
    base_width: Width | None = Field(
        **absent_at(None), description="width at which the rate was tuned; for optim.parametrization=mup"
    )
    position_side: Side | None = Field(
        **absent_at(None), description="tokens of a side over which positions run; None: those of the image"
    )
    positions: Literal["sincos", "rope"] = Field(
        **absent_at("sincos"),
        description="of image tokens; sincos: a fixed table is added; rope: queries and keys turn by row and column",
    )
    block: BlockName = Field(
        **absent_at(DEFAULT_BLOCK),
        description="pixart: cross-attention to a caption; dit: the class of an image, by adaLN-zero; mmdit: text and "
        "image tokens in two streams with joint attention",
    )
    ffn: DenseActivation | None = Field(
        **absent_at(None), description="activation of dense feed-forwards; None: that of the block"
    )
    qk_norm: QkNorm | None = Field(
        **absent_at(None), description="norm of queries and keys in each head; None: that of the block"
    )
    learn_sigma: bool | None = Field(
        **absent_at(None),
        description="as many outputs again, for a learned variance, which flow.learned_sigma reads; None: as the "
        "block's public code",
    )
    time_scale: TimeScale = Field(**absent_at(1000.0), description="what t is multiplied by before it is embedded")


class DataConfig(Settings):
    """Holds the settings of the data. `shapes` are procedural captioned scenes with pixels in [-1, 1].

    `latents` and `pixels` are data sets of `ecdit data prepare`, which determine all but `path` and `seed`
    (`prepared_settings.py`). Fields that only they have are absent from the settings of other runs. The defaults are
    those of `shapes`; the rows of other data sets bring theirs (`data_sets.py`).
    """

    name: DataSetName = Field("shapes", description="drawn scenes, or a prepared data set; follows from data.path")
    image_size: Side = Field(32, description="side of the grid that the model sees")
    channels: Side = Field(3, description="channels of a pixel or of a latent")
    vocab_size: Tokens | None = Field(64, description="of the trained text encoder; None: features are precomputed")
    caption_length: Tokens = Field(16, description="tokens that a caption is padded to")
    seed: Seed = Field(0, description="of the data stream; runs of different `seed` share it")
    text_width: Width | None = Field(**absent_at(None), description="of precomputed features of tokens")
    pooled_width: Width | None = Field(**absent_at(None), description="of pooled features")
    num_classes: Tokens | None = Field(
        **absent_at(None),
        description="classes of the images, which take the place of captions with model.block=dit",
    )
    fingerprint: Text | None = Field(**absent_at(None), description="of the data set")
    path: Text | None = Field(**absent_at(None), description="folder of the data set")


class OptimConfig(Settings):
    """Holds the settings of optimizer and schedule. RMSProp's momentum and every Adam constant are ours."""

    name: Literal["adamw", "rmsprop"] = Field("adamw", description="the optimizer")
    learning_rate: LearningRate = Field(description="the largest rate of the schedule")
    weight_decay: WeightDecay = Field(
        0.0, description="AdamW takes it off the weights, RMSProp adds it to the gradient"
    )
    beta1: Smoothing = Field(0.9, description="AdamW: smoothing of the gradient")
    beta2: Smoothing = Field(0.99, description="smoothing of the squared gradient, also of RMSProp")
    momentum: Smoothing = Field(0.9, description="RMSProp only")
    epsilon: Epsilon = Field(1e-8, description="added to the root of the squared gradient")
    warmup_images: ImagesOrNone = Field(3200, description="images over which the learning rate rises from 0")
    schedule: Literal["constant", "cosine", "wsd"] = Field(
        "cosine", description="course of the learning rate after that; wsd: constant, then a cooldown to 0"
    )
    cooldown_share: CooldownShare | None = Field(
        **absent_at(None), description="wsd only, 0.2 there: share of the images over which the rate falls"
    )
    cooldown_shape: Literal["1-sqrt", "linear"] | None = Field(
        **absent_at(None), description="wsd only, 1-sqrt there: the rate over the share x of the cooldown"
    )
    clip_norm: Norm = Field(1.0, description="largest norm of all gradients together")
    parametrization: Literal["standard", "mup"] = Field(
        **absent_at("standard"),
        description="mup: first weights and rates follow the width, so that a rate tuned at model.base_width fits",
    )
    rate_by_length: Images | None = Field(
        **absent_at(None),
        description="optimizer steps for which the rate was tuned; rate, decay, epsilon and betas follow this run's",
    )


class EvalConfig(Settings):
    """Holds the settings of validation on a fixed set of (image, t, noise), of W&B's samples and of sampled metrics."""

    every_images: Images = Field(6_400, description="images between two evaluations")
    images: HeldImages = Field(512, description="images of the validation set")
    batch_images: BatchImages = Field(32, description="images that are evaluated at a time")
    sample_images: HeldImagesOrNone = Field(8, description="images of the sample grid; 0: no grid")
    sample_steps: Steps = Field(24, description="steps of the sampler")
    guidance: Guidance = Field(2.0, description="scale of classifier-free guidance; 1 is none")
    metric_images: SampledImagesOrNone = Field(
        0, description="images sampled at every evaluation for metrics of samples; 0: none is measured"
    )


class RunConfig(Settings):
    """Holds everything that defines one run."""

    model: ModelConfig
    routing: RoutingConfig
    flow: FlowConfig = FlowConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    parallel: ParallelConfig = ParallelConfig()
    log: LogConfig = LogConfig()
    wandb: WandbConfig = WandbConfig()
    seed: Seed = Field(0, description="of the first weights, and of the times, noise and dropout that training draws")

    @model_validator(mode="before")
    @classmethod
    def _fill_open_settings(cls, raw: Any, info: ValidationInfo) -> Any:
        """Fills settings that the user left open with the defaults of the preset, the router and the data set."""
        if not isinstance(raw, dict) or not all(
            isinstance(raw.get(key, {}), dict) for key in ("model", "routing", "optim", "data", "flow")
        ):
            return raw
        model, routing = dict(raw.get("model", {})), dict(raw.get("routing", {}))
        routing = routing_defaults(routing, (info.context or {}).get("unloaded", ()))
        name = str(model.get("name", "nano"))
        model = with_heads({**model_defaults(name, sparse=routing["name"] != "dense"), **model}, given=model)
        if routing["expert_factor"] is None and routing["expert"] is not None:
            routing["expert_factor"] = model.get("ffn_factor", 4.0)
        optim = {"learning_rate": find_preset(name).learning_rate, **with_cooldown(raw.get("optim", {}))}
        flow = {"flow": with_objective(raw["flow"])} if "flow" in raw else {}
        data = fixed_settings(raw.get("data", {}), model.get("block", DEFAULT_BLOCK))
        return {**raw, "model": model, "routing": routing, "optim": optim, **flow, **({"data": data} if data else {})}

    @property
    def total_images(self) -> int:
        """Returns the images that a finished run has seen: `train.images` rounded up to whole batches."""
        return -(-self.train.images // self.train.batch_images) * self.train.batch_images

    @property
    def micro_batch_images(self) -> int:
        """Returns the number of images of one forward pass of one process in training."""
        return self.train.batch_images // (self.parallel.world * self.train.accumulation)

    @property
    def num_tokens(self) -> int:
        """Returns the number of tokens of one image without masking."""
        return (self.data.image_size // self.model.patch_size) ** 2

    @property
    def position_side(self) -> int:
        """Returns the side, in tokens, of the grid over which positions run: that of the image unless it is set."""
        return self.model.position_side or self.data.image_size // self.model.patch_size

    @property
    def num_train_tokens(self) -> int:
        """Returns the number of tokens of one image that training keeps."""
        return self.num_tokens - int(self.num_tokens * self.train.mask_ratio)

    @property
    def has_balance_losses(self) -> bool:
        """Says whether several layers have a balance loss, so that it matters whether their sum or mean is taken."""
        return self.routing.balance_loss_weight > 0 and len(self.sparse_layer_indices) > 1

    @property
    def sparse_layer_indices(self) -> tuple[int, ...]:
        """Returns the layers whose feed-forward is routed: those of `model.sparse_layers`, or none when dense."""
        return () if self.routing.name == "dense" else sparse_blocks(self.model.sparse_layers, self.model.num_layers)
