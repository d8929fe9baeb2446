"""Defines what a run writes: `run.json`, `status.json` and the rows of the JSONL files.

The names here are the columns of every table and the keys in W&B. Units are in the names; counts start with `num_`.
A missing value is missing: the key is absent from the file, never 0 and never "".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from experiments.inputs import MAX_WHOLE
from experiments.records.measurement_settings import MAX_NUMBER, MeasurementSettings
from experiments.text import encodable

SCHEMA_VERSION = 1

State = Literal["planned", "running", "done", "failed", "interrupted"]
Weights = Literal["raw", "ema"]
Precision = Literal["fp32", "bf16"]
FILE_OF_WEIGHTS: dict[Weights, str] = {"raw": "weights", "ema": "ema"}
"""The file of a checkpoint that holds each kind of weights."""

BalanceLoss = Literal["sum over layers"]
BALANCE_LOSS: BalanceLoss = "sum over layers"
"""Names how training combines the balance losses of the routed layers. Runs and checkpoints that do not say it are of a
version that took their mean, with the same settings and therefore the same config id."""

MAX_MEASURED = 1e40
"""The largest measured number. It is above every number of float32, which is what training computes in, and its square
is far below what a float64 holds, so that spreads and fits of any rows can be computed."""

Number = Annotated[float, Field(ge=-MAX_MEASURED, le=MAX_MEASURED)]
OptionalNumber = Annotated[float | None, Field(ge=-MAX_MEASURED, le=MAX_MEASURED)]
Whole = Annotated[int, Field(ge=-MAX_WHOLE, le=MAX_WHOLE)]
Count = Annotated[int, Field(ge=0, le=MAX_WHOLE)]
Positive = Annotated[int, Field(ge=1, le=MAX_WHOLE)]
Amount = Annotated[float, Field(ge=0, le=MAX_MEASURED)]
Seconds = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
ProcessId = Annotated[int, Field(ge=1, lt=2**31)]
Words = Annotated[str, BeforeValidator(lambda text: encodable(text) if isinstance(text, str) else text)]
"""Text that may come from the file system or a command line, where names need not be valid Unicode."""


class Record(BaseModel):
    """The base class of all records, which are frozen, closed to unknown keys, and without NaN and infinity.

    Whoever reads a record validates it with `strict=True`: a text or a boolean is then no number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PluginRecord(Record):
    """Is a plugin that a run uses: code from outside of this project."""

    kind: Words = Field(description="router")
    name: Words
    sha256: Words = Field(description="of its source file; of several files one after the other")
    source: Words = Field(description="the file or package that it came from")


class ParentRecord(Record):
    """Is the run from which a run took its first weights, or the shorter one on whose trunk it began.

    With `--branch-from` the two share their first `images`, which count as the run's own. With `train.init_from` the
    run begins at its first image, and what its weights have cost before is counted beside it. The fields from `path` on
    are those of `train.init_from`.
    """

    name: Words
    config_id: str
    images: Count = Field(description="seen at the checkpoint from which this run continued; 0 of imported weights")
    path: Words | None = Field(None, description="the folder from which the weights were read")
    router: Words | None = Field(None, description="its routing.name")
    weights: Weights | None = Field(None, description="ema or raw")
    fingerprint: str | None = Field(None, description="hash of the files of its weights")
    train_flops: Amount | None = Field(None, description="that it spent on these images, as executed where known")
    tensors: dict[str, dict[str, Count]] | None = Field(
        None, description="what became of them: taken, copied, extended or new, by part of the model"
    )
    parent: ParentRecord | None = Field(None, description="the run from which the parent began")

    @property
    def is_trunk(self) -> bool:
        """Says whether the run continues a shorter one, whose images are its own."""
        return self.fingerprint is None

    @property
    def ancestors(self) -> Iterator[ParentRecord]:
        """Yields those whose compute came before the run: this one where it is no trunk, and its own ancestors."""
        if not self.is_trunk:
            yield self
        if self.parent is not None:
            yield from self.parent.ancestors


class PartRecord(Record):
    """Is a dense run whose feed-forwards are an expert of a merged run (`ecdit merge`)."""

    name: Words
    config_id: str
    num_captions: Positive | None = Field(
        None, description="that it denoised for its row of the routers; None: the row is random"
    )


class ImportedRecord(Record):
    """Says which weights of public code a run holds, which was not trained here (`ecdit import-weights`)."""

    layout: Words = Field(description="the public code: dit or dit-moe")
    objective: Words
    sha256: str = Field(description="of the file that was read")
    weights: Weights | None = Field(None, description="ema or raw, where the file says it; None also in older records")


class TunedSetting(Record):
    """Says how a setting of a run was found: the best of several values on proxies of its arm."""

    setting: Words
    value: Number = Field(description="the best value, with which the run trains")
    values: list[Number] = Field(min_length=1, description="every value that was tried, in ascending order")
    losses: list[OptionalNumber] = Field(
        min_length=1,
        description="final validation loss at each of `values`, mean over seeds; null where a run of it did not finish",
    )
    num_seeds: Positive
    seeds: list[Count] | None = Field(None, description="of the proxies, none of the sweep's; None: 0, 1 and so on")
    on: dict[Words, bool | int | float | Words | None] = Field(description="the settings in which proxies differ")
    proxies: list[Words] = Field(description="the names of the runs that were compared")
    edge: bool = Field(False, description="whether the best value is the first or last, so a better may lie beyond")

    def __str__(self) -> str:
        """Says it in words: `best of 3 values from 0.001 to 0.004, 2 seeds not in the sweep, on train.images=3200`."""
        seeds = f"{self.num_seeds} seed{'s' * (self.num_seeds > 1)} {'not' if self.seeds else 'perhaps'} in the sweep"
        on = f", on {' '.join(f'{name}={value}' for name, value in self.on.items())}" if self.on else ""
        edge = ", at the edge of them" if self.edge else ""
        return f"best of {len(self.values)} values from {self.values[0]:g} to {self.values[-1]:g}{edge}, {seeds}{on}"


class Origin(Record):
    """Says how a run relates to others of its sweep. The sweep hands it to the run, whose `run.json` keeps it."""

    tuned: TunedSetting | None = Field(None, description="how a setting of the run was found; None: it was given")
    tunes: Words | None = Field(None, description="the sweep for which the run, a proxy, helps to tune a setting")
    retry_of: Words | None = Field(
        None, description="the run that diverged, which this one repeats at a lower learning rate"
    )


class RunRecord(Origin):
    """Holds `run.json`, which says what the run is and where it ran. It is written once, when the run first starts."""

    schema_version: int = SCHEMA_VERSION
    config: dict[str, Any] = Field(description="the resolved `RunConfig`, nested")
    config_id: str = Field(description="hash of the settings that change the numbers")
    name: Words = Field(description="readable name, unique in a sweep")
    sweep: Words | None = Field(None, description="name of the sweep the run belongs to")
    created_at: str = Field(description="UTC, ISO 8601")
    command: list[Words]
    git_commit: str | None = None
    versions: dict[str, str] = Field(description="python, torch, deepspeed, ecdit, ...")
    host: Words
    device: Words = Field(description="'cpu: ' and its name and cores, or the accelerator's name")
    num_threads: Count
    precision: Precision = Field(description="what train.precision became here")
    world: Positive
    matmul_flops_per_second: Amount | None = Field(
        None, description="of one process: its fastest large matmul in this precision, measured at the first start"
    )
    params_total: Positive
    params_active: Positive = Field(description="weights that one token passes through on average")
    params_by_part: dict[str, Count]
    flops_per_image: Positive = Field(description="one forward pass over all tokens of one image")
    train_flops_per_image: Positive = Field(description="forward and backward over the tokens training keeps")
    plugins: list[PluginRecord] | None = Field(None, description="that the run uses; None: none")
    parent: ParentRecord | None = Field(
        None, description="run that it continued from, or took its first weights from; None: it began by itself"
    )
    parts: list[PartRecord] | None = Field(
        None, min_length=2, description="dense runs that it was merged from, in the order of its experts; None: trained"
    )
    imported: ImportedRecord | None = Field(None, description="public weights that the run holds; None: trained here")

    @property
    def plugin_names(self) -> list[str]:
        """Returns the names of the run's plugins, which need not be loaded where records are only read."""
        return [plugin.name for plugin in self.plugins or ()]

    @property
    def images_before(self) -> int:
        """Returns the images on which its first weights were trained, by the parent and the parents of that."""
        return sum(each.images for each in self._ancestors)

    @property
    def flops_before(self) -> float:
        """Returns the training FLOPs of these images."""
        return sum(each.train_flops or 0.0 for each in self._ancestors)

    @property
    def _ancestors(self) -> Iterator[ParentRecord]:
        return iter(()) if self.parent is None else self.parent.ancestors

    @property
    def on_accelerator(self) -> bool:
        """Says whether the run trained on an accelerator."""
        return self.device.partition(":")[0] != "cpu"


class Status(Record):
    """Holds `status.json`, which is replaced atomically; it alone decides whether a run is finished."""

    state: State
    images_seen: Count = 0
    images_total: Count
    heartbeat: Seconds = Field(description="seconds since the epoch when this was written")
    reason: Words | None = Field(None, description="why it failed or was interrupted")
    peak_memory_gib: Amount | None = Field(
        None, description="most that this process has taken: of the accelerator, or its resident set on a CPU"
    )
    pid: ProcessId | None = None
    host: Words | None = None
    checkpoint_images: Count | None = Field(
        None, description="images seen at the newest complete checkpoint, 0 before the first; None: not known"
    )
    balance_loss: BalanceLoss | None = Field(
        None, description="how the balance losses of layers were combined; None: by their mean, or it did not train"
    )


class StepRow(Record):
    """A row of `steps.jsonl`: means over the images since the row before, every `log.every_images`."""

    images_seen: Count
    flops: Amount = Field(description="spent so far: images_seen x train_flops_per_image")
    executed_flops: Annotated[float | None, Field(ge=0, le=MAX_MEASURED)] = Field(
        None, description="training FLOPs spent so far, as they were executed; None: as planned in `flops`"
    )
    seconds: Seconds = Field(description="spent training so far, over all resumptions, without evaluation")
    loss: Number = Field(description="of the objective (`flow.objective`), without auxiliary losses")
    auxiliary_loss: OptionalNumber = Field(None, description="weighted balance losses, summed over the routed layers")
    learning_rate: Number
    grad_norm: Amount
    images_per_second: Amount


class RoutingRow(Record):
    """A row of `routing.jsonl`: one per routed layer, over the validation set, every `eval.every_images`."""

    images_seen: Count
    layer: Count
    condition: Literal["mixed_t", "same_t"] = Field(description="how t is batched; sampling is same_t")
    load: list[Number] = Field(description="share of the token-to-expert assignments by expert; sums to 1")
    entropy: Number = Field(description="of a token's affinities over experts, mean, divided by log E: 0 to 1")
    load_entropy: Number = Field(description="of `load`, divided by log E: 1 is perfect balance")
    dropped_share: Number = Field(description="share of tokens that no expert processed")
    experts_per_token: list[Number] = Field(description="share of tokens processed by 0, 1, 2, ... experts")
    slots_per_token: OptionalNumber = Field(None, description="expert slots computed per token, empty ones included")
    pair_usage: OptionalNumber = Field(
        None, description="share of the pairs of experts that make up 95% of the tokens that two experts share"
    )
    slots_by_time: list[OptionalNumber] | None = Field(
        None, description="experts per token by tenth of t; None where no image has such a t"
    )
    slots_by_image: list[Number] | None = Field(
        None, description="lowest, median and highest mean of experts per token of an image"
    )


class EvalRow(Record):
    """A row of `evals.jsonl`: one measured value.

    Metrics that training writes: `val_loss`; `val_loss_t0` ... `val_loss_t9` (tenths of t); `val_loss_same_t` (batches
    of one timestep, as in sampling) and `val_loss_same_t_t0` ... `val_loss_same_t_t9` (by tenths of t);
    `velocity_error`, the mean squared error of the velocity that the prediction implies, which all objectives share,
    and where it is another number than the loss also `velocity_error_t0` and so on; `dropped_share` and
    `dropped_share_same_t` (mean over routed layers; absent when dense); with `eval.metric_images` also sampled metrics.
    Where a router decides otherwise in inference than in training, `val_loss` is with the decision of inference and
    `val_loss_training_decision` with that of training. Where a forward pass computes other FLOPs than planned,
    `executed_flops_per_image` has them, and `executed_flops_per_image_same_t` those on batches of one timestep. The
    others come from `ecdit evaluate`. With `--ema` it adds `ema_width` to the `settings` of a row: the width of the
    average that it reconstructed. A row without it is of the average that training keeps to evaluate with.
    """

    images_seen: Count
    metric: str
    value: Number
    interval_low: OptionalNumber = Field(None, description="lower end of the 95% interval of `value`, where it has one")
    interval_high: OptionalNumber = None
    num_samples: Positive
    seed: Whole
    weights: Weights
    settings: MeasurementSettings = Field(default_factory=dict, description="what else the value depends on")
    while_training: bool | None = Field(
        None, description="true where training sampled it, and measures it again when it goes on from before it"
    )
