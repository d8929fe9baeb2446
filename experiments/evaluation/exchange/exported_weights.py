"""Writes the weights of a run for inference (`ecdit export-weights`).

A folder holds `model.safetensors`, or numbered shards with Hugging Face's `model.safetensors.index.json`;
`model.json` with the run's record, the kind of weights (EMA or raw), and a checksum of every file; and a model card,
whose text the caller writes (`analysis/model_card.py`). None of them can execute anything. The files of weights hold
whole parameters under the names of the module, in one precision, without optimizer state. They are read from the
checkpoint one at a time, so that no more than a shard is in memory, however large the run. `records/exported_record.py`
and `training/exported_tensors.py` read the folder.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from experiments.errors import CheckpointError, ConfigError, OutputError, StorageError
from experiments.evaluation.sampling.finite import require_finite_weights
from experiments.inputs import sha256_of_files
from experiments.records.exported_record import Exported
from experiments.records.outputs import require_outside_runs
from experiments.records.record_types import FILE_OF_WEIGHTS, Precision, RunRecord, Weights
from experiments.records.run_folder import RunDir
from experiments.records.storage import storage_errors
from experiments.records.writer import write_json_atomic
from experiments.training.checkpoint import Checkpoint, load_newest
from experiments.training.checkpoint_files import save_tensors, shard_name
from experiments.training.exported_tensors import DTYPES
from experiments.training.reconstructed_average import reconstructed_average
from experiments.training.router_states import KEY as ROUTER_STATE

INDEX = "model.safetensors.index.json"
CARD = "README.md"


def newest(
    run_dir: RunDir, weights: Weights, say: Callable[[str], None], ema_width: float | None = None
) -> tuple[RunRecord, Checkpoint]:
    """Returns the record and the newest whole checkpoint of a run, with its average in `ema_width` where one is given.

    Raises `CheckpointError` where none can be read, and `ConfigError` where the run's averages do not give that width
    or where it is asked for with raw weights.
    """
    if ema_width is not None and weights != "ema":
        raise ConfigError(f"--ema names an average, and --weights {weights} is none.", "Leave out one of the two.")
    record = run_dir.read_run()
    checkpoint = load_newest(run_dir, record.config_id, say, files=[FILE_OF_WEIGHTS[weights]])
    if checkpoint is None:
        raise CheckpointError(f"{run_dir.path} has no checkpoint yet.", "Train it first, with the same command again.")
    if ema_width is not None:
        checkpoint = reconstructed_average(run_dir, checkpoint, ema_width, say)
    return record, checkpoint


def export_weights(
    run_dir: RunDir,
    out: Path,
    weights: Weights,
    precision: Precision,
    shard_bytes: int,
    say: Callable[[str], None],
    written: Callable[[int], None] = lambda num_parameters: None,
    ema_width: float | None = None,
    card: Callable[[Exported], str] | None = None,
) -> list[Path]:
    """Writes the newest checkpoint of a run to `out`, and returns the files.

    `ema_width` is the width of the average, where it is to be reconstructed. `written` is called with the number of
    parameters written so far. `card` returns the text of the model card; without it there is none. Raises
    `CheckpointError` where there is nothing to export, or where a weight is not finite in this precision, since whoever
    loads such weights refuses them; `StorageError` where `out` holds something else, and `OutputError` inside a run.
    """
    require_outside_runs(out)
    with storage_errors(out):
        if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
            raise StorageError(f"{out} is {'not empty' if out.is_dir() else 'a file'}.", "Name a new folder.")
    record, checkpoint = newest(run_dir, weights, say, ema_width)
    width = DTYPES[precision].itemsize
    groups = _shards(checkpoint.shapes, width, shard_bytes)
    sums: dict[str, str] = {}
    places: dict[str, str] = {}
    with folder_that_appears_whole(out) as folder:
        for place, names in enumerate(groups):
            file = shard_name("model", place, len(groups))
            tensors = {name: _whole(checkpoint, weights, name).to(DTYPES[precision]) for name in names}
            require_finite_weights(tensors.items(), f"{checkpoint.path} ({weights})")
            save_tensors(tensors, folder / file, metadata={"format": "pt"})
            sums[file] = sha256_of_files(folder / file)
            places |= dict.fromkeys(names, file)
            written(sum(math.prod(checkpoint.shapes[name]) for name in places))
        if len(groups) > 1:
            total = width * sum(math.prod(shape) for shape in checkpoint.shapes.values())
            write_json_atomic(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        about = Exported(
            record=record, images_seen=checkpoint.state["images_seen"], weights=weights, precision=precision,
            sha256=sums, ema_width=ema_width, router_state=checkpoint.state.get(ROUTER_STATE),
        )  # fmt: skip
        write_json_atomic(RunDir(folder).exported, about.model_dump(mode="json", exclude_none=True))
        if card is not None:
            (folder / CARD).write_text(card(about), encoding="utf-8")
    return sorted(out.iterdir())


def require_new_folder(out: Path) -> None:
    """Raises `OutputError` where `out` exists, or lies inside a run, whose folder holds its own files alone."""
    if os.path.lexists(out):
        raise OutputError(f"{out} exists already.", "Name a new folder.")
    require_outside_runs(out)


@contextmanager
def folder_that_appears_whole(out: Path) -> Iterator[Path]:
    """Yields a folder to write to, which is renamed to `out` at the end; after an error it is removed."""
    folder = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.writing")
    with storage_errors(out):
        folder.mkdir(parents=True)
        try:
            yield folder
            folder.replace(out.resolve())
        except BaseException:
            shutil.rmtree(folder)
            raise


def _whole(checkpoint: Checkpoint, weights: Weights, name: str) -> Tensor:
    shape = checkpoint.shapes[name]
    return checkpoint.read(FILE_OF_WEIGHTS[weights], name, 0, math.prod(shape)).view(shape)


def _shards(shapes: dict[str, tuple[int, ...]], width: int, shard_bytes: int) -> list[list[str]]:
    """Returns the names by file, in order; a file exceeds `shard_bytes` only for a single parameter that does."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        more = width * math.prod(shape)
        if groups[-1] and size + more > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
    return groups
