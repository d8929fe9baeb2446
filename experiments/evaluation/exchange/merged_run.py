"""Makes one run with experts of several finished dense runs, without training (`ecdit merge`; SegMoE).

The experts of a routed layer are the feed-forwards that the runs have there, in the order in which the runs are named.
Every other parameter is that of the first run, as SegMoE takes the first checkpoint's network for the rest. All weights
are the moving averages. `prompt_rows.py` computes the routers and `routing/segmoe.py` says how they decide.

The result is a run folder like any other, with a checkpoint and the validation losses of the merged model. It holds no
steps. Its `run.json` names its parts, and counts as FLOPs of training those of all of them. What their first weights
have cost (`train.init_from`) counts once, because all parts began from the same ones.

Legend: D width, F hidden width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from experiments.config.blocks import block_of
from experiments.config.budget import budget
from experiments.config.checks import check_config
from experiments.config.schema import RunConfig
from experiments.config.stored import buildable_config
from experiments.errors import ConfigError, RecordError
from experiments.evaluation.exchange.exported_weights import folder_that_appears_whole, require_new_folder
from experiments.evaluation.exchange.prompt_rows import num_calls, random_rows, row_from_captions
from experiments.evaluation.sampling.load_run import LoadedRun, current_device, load_run
from experiments.layers.pieces import Activation
from experiments.models.dit import DiT
from experiments.records.record_types import PartRecord, RunRecord
from experiments.records.run_folder import RunDir
from experiments.records.writer import RecordWriter
from experiments.settings_id import counted_settings, dotted
from experiments.training.checkpoint_files import write_checkpoint
from experiments.training.description import describe_run
from experiments.training.validation import Validator

MERGED_ROUTER = "segmoe"
SEEDS = ("seed", "data.seed")
"""The settings in which merged runs may differ, beside those that change no results."""


@dataclass(frozen=True)
class MergeOptions:
    """The options of `ecdit merge`."""

    top_k: int
    sparse_layers: Literal["alternate", "all"]
    from_prompts: bool
    """Says whether the routers are computed while the runs denoise captions. Otherwise they are random."""
    num_prompts: int | None = None
    """The number of captions that each run denoises; None stands for its whole validation set."""

    def num_captions(self, config: RunConfig) -> int:
        """Returns how many captions each run denoises: 0 for random routers, and at most its validation set."""
        return min(self.num_prompts or config.eval.images, config.eval.images) if self.from_prompts else 0


class MergeDisplay(Protocol):
    """Shows which part of the merge begins, and counts the calls of its models."""

    def part(self, doing: str) -> None:
        """Names the part that begins now."""

    def counter(self, total: int, doing: str | None = None) -> Callable[[], None]:
        """Begins a part of `total` calls, and returns the function to call after each."""

    def say(self, line: str) -> None:
        """Prints one line."""


@dataclass(frozen=True)
class DenseRun:
    """A finished dense run that is to be merged."""

    folder: RunDir
    record: RunRecord
    config: RunConfig


@dataclass(frozen=True)
class MergedModel:
    """A merged model on this process alone, as `Validator` takes it."""

    model: DiT
    device: torch.device
    rank: int = 0
    world: int = 1
    layers_are_collective: bool = False


def merge_runs(
    folders: Sequence[RunDir], out: Path, options: MergeOptions, command: Sequence[str], show: MergeDisplay
) -> RunRecord:
    """Merges finished dense runs into a new run folder `out`, and returns its record.

    Raises `OutputError` where `out` exists, `RecordError` for runs that cannot be merged, `ConfigError` for a single
    run and for options that do not fit, `CheckpointError` where weights cannot be read, `RunFailedError` where a loss
    of the merged model is not finite, `StorageError` where `out` cannot be written. It appears whole or not at all.
    """
    if len(folders) < 2:
        raise ConfigError("A merged run has an expert of each run, and only one is named.", "Name two runs or more.")
    require_new_folder(out)
    runs = [_dense_run(folder) for folder in folders]
    _require_alike(runs)
    config = _merged_config(runs, options)
    tensors, images_seen = _merged_tensors(runs, config, options, show)
    show.part("validating the merged model")
    model = DiT(config)
    model.load_state_dict(tensors)
    device = current_device()
    rows, routing = Validator(config).measure(MergedModel(model.to(device), device), images_seen, "raw")
    record = _merged_record(runs, config, options.num_captions(config) or None, command)
    with folder_that_appears_whole(out) as folder:
        merged = RunDir(folder)
        writer = RecordWriter.open(merged, record, images_seen=0)
        try:
            for weights in ("raw", "ema"):  # the run has one set of weights, which commands ask for under both names
                writer.evaluation([row.model_copy(update={"weights": weights}) for row in rows])
            writer.routing(routing)
            both = {"weights": tensors, "ema": tensors}
            write_checkpoint(merged, record.config_id, {"images_seen": images_seen}, both, keep=1)
            writer.status("done", images_seen, checkpoint_images=images_seen)
        finally:
            writer.close()
    return record


def _dense_run(folder: RunDir) -> DenseRun:
    """Returns the run in `folder`. Raises `RecordError` unless it is a finished run without experts."""
    record, status = folder.read_run(), folder.read_status()
    config = buildable_config(record.config, folder.run_json)
    if config.routing.name != "dense":
        raise RecordError(
            f"{folder.path} has experts already: its routing.name is {config.routing.name}.",
            "Merge runs with routing.name=dense.",
        )
    activation = block_of(config).activation
    if activation not in get_args(Activation):
        raise RecordError(
            f"{folder.path} has feed-forwards with {activation}, which no experts have.",
            f"Merge runs with model.ffn={' or '.join(get_args(Activation))}.",
        )
    if status is None or status.state != "done":
        stands = "it has no status" if status is None else f"{status.state} after {status.images_seen:,} images"
        raise RecordError(
            f"{folder.path} is not finished ({stands}).", "Finish it with the `ecdit train` command that began it."
        )
    return DenseRun(folder, record, config)


def _require_alike(runs: Sequence[DenseRun]) -> None:
    """Raises `RecordError` unless the runs differ from the first in their seeds alone, and all from each other."""
    first, seen = runs[0], dict[str, DenseRun]()
    here = _compared_settings(first.config)
    for run in runs:
        there = _compared_settings(run.config)
        key = next((key for key in {**here, **there} if here.get(key) != there.get(key)), None)
        if key is not None:
            raise RecordError(
                f"{first.folder.path} and {run.folder.path} cannot be merged: {key} is {here.get(key)} in the first "
                f"and {there.get(key)} in the second.",
                f"Merge runs that differ in {' and '.join(SEEDS)} alone.",
            )
        twin = seen.setdefault(run.record.config_id, run)
        if twin is not run:
            raise RecordError(
                f"{twin.folder.path} and {run.folder.path} have the same settings and seeds, so that two experts would "
                "be equal.",
                "Name each run once, or train one with another seed.",
            )


def _compared_settings(config: RunConfig) -> dict[str, Any]:
    """Returns the dotted settings that merged runs must share: all that change results, except seeds."""
    settings = dotted(counted_settings(config.model_dump(mode="json")))
    return {key: value for key, value in settings if key not in SEEDS}


def _merged_config(runs: Sequence[DenseRun], options: MergeOptions) -> RunConfig:
    """Returns the settings of the first run with an expert for each run. Raises `ConfigError` where they do not fit."""
    if options.top_k > len(runs):
        raise ConfigError(
            f"--top-k {options.top_k} is more than the {len(runs)} runs, each of which becomes an expert.",
            f"Use --top-k {len(runs)}, or name more runs.",
        )
    settings = runs[0].config.model_dump()
    row = block_of(runs[0].config)
    routing = {
        "name": MERGED_ROUTER, "num_experts": len(runs), "top_k": options.top_k, "expert": row.activation,
        "expert_bias": row.has_biases,
    }  # fmt: skip
    model = {**settings["model"], "sparse_layers": options.sparse_layers}
    config = RunConfig.model_validate({**settings, "model": model, "routing": routing})
    check_config(config)
    return config


def _merged_tensors(
    runs: Sequence[DenseRun], config: RunConfig, options: MergeOptions, show: MergeDisplay
) -> tuple[dict[str, Tensor], int]:
    """Returns the parameters of the merged model, fp32 on the CPU, and the images that the first run has seen.

    One run at a time is in memory beside what is kept of the others.
    """
    layers, num_captions = config.sparse_layer_indices, options.num_captions(config)
    merged: dict[str, Tensor] = {}
    experts: list[dict[str, Tensor]] = []
    rows: list[dict[int, Tensor]] = []
    images_seen = 0
    for run in runs:
        loaded = load_run(run.folder, "ema", show.say, "fp32")
        _require_last(run, loaded)
        feed_forwards, others = _split(loaded, layers)
        if not experts:
            merged, images_seen = others, loaded.images_seen
        experts.append(feed_forwards)
        if num_captions:
            on_call = show.counter(num_calls(config, num_captions), f"sampling from {run.folder.path.name}")
            rows.append(row_from_captions(loaded, layers, num_captions, on_call))
    drawn = random_rows(config, layers)
    for layer in layers:
        ffn = f"blocks.{layer}.ffn"
        rows_ED = torch.stack([of_run[layer] for of_run in rows]) if rows else drawn[layer]
        merged[f"{ffn}.router.weight_DE"] = rows_ED.T.contiguous()
        merged[f"{ffn}.experts.w_in_EFD"] = torch.stack([of_run[f"{ffn}.w_in.weight"] for of_run in experts])
        # A dense layer stores its second matrix as [D, F], and stacked experts store it as [F, D].
        merged[f"{ffn}.experts.w_out_EFD"] = torch.stack([of_run[f"{ffn}.w_out.weight"].T for of_run in experts])
        if config.routing.expert_bias:
            merged[f"{ffn}.experts.b_in_EF"] = torch.stack([of_run[f"{ffn}.w_in.bias"] for of_run in experts])
            merged[f"{ffn}.experts.b_out_ED"] = torch.stack([of_run[f"{ffn}.w_out.bias"] for of_run in experts])
    return merged, images_seen


def _require_last(run: DenseRun, loaded: LoadedRun) -> None:
    """Raises `RecordError` where the weights are not those of the end of training, whose FLOPs the record counts."""
    status = run.folder.read_status()
    if status is not None and loaded.images_seen != status.images_seen:
        raise RecordError(
            f"{run.folder.path} is finished after {status.images_seen:,} images, but its newest intact checkpoint is "
            f"of {loaded.images_seen:,}.",
            "Bring the last checkpoint back, or merge other runs.",
        )


def _split(run: LoadedRun, layers: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights of the feed-forwards of `layers`, and all others, by name and on the CPU."""
    prefixes = tuple(f"blocks.{layer}.ffn." for layer in layers)
    feed_forwards, others = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in run.model.state_dict().items():
        (feed_forwards if name.startswith(prefixes) else others)[name] = tensor.cpu()
    return feed_forwards, others


def _merged_record(
    runs: Sequence[DenseRun], config: RunConfig, num_captions: int | None, command: Sequence[str]
) -> RunRecord:
    """Returns the record of the merged run, in the precision of the first and with the training FLOPs of all parts."""
    described = describe_run(config, runs[0].record.precision, budget(config), command)
    parts = [
        PartRecord(name=run.record.name, config_id=run.record.config_id, num_captions=num_captions) for run in runs
    ]
    spent = sum(run.record.train_flops_per_image for run in runs)
    first = runs[0].record.parent
    parent = None if first is None else next(first.ancestors, None)  # of a trunk the images are the part's own
    return described.model_copy(update={"parts": parts, "train_flops_per_image": spent, "parent": parent})
