"""`ecdit data prepare`: captioned images to a data set of latents and text features, by several processes, resumable.

The rows of a source are dealt to shards by number alone, those of the validation set by a fixed permutation; each shard
is made by one process and appears whole or not at all, with a note beside it (`train-00000.json`: checksum, what was
left out). So a run that was killed goes on where it was and ends with the same files. The index comes last. Running it
again on a data set that is whole makes only what is missing or damaged, be it a file, a note, the request or the index.
The format is described in `experiments.config.data_set`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.config.data_set import (
    INDEX_FILE,
    REQUEST_FILE,
    SCHEMA_VERSION,
    DataSetIndex,
    Shard,
    Source,
    fingerprint_of,
)
from experiments.data.encoder_configs import VaeConfig, read_vae_config
from experiments.data.encoders import EncoderFolders, find_encoders
from experiments.data.encoding import Loaded, load_row
from experiments.data.latents import MappedShard
from experiments.data.processes import encode_shards, end_with, open_request
from experiments.data.shards import Request, SetFolder, ShardTask, deal_rows
from experiments.data.source import SourceRows
from experiments.errors import ConfigError
from experiments.inputs import read_input
from experiments.records.storage import replace_atomically, storage_errors, write_json_atomic
from experiments.text import printable, shortened

LEFT_OUT_FILE = "left_out.jsonl"
OnRows = Callable[[int, int], None]
"""(rows done, rows in all)"""
SECONDS_BETWEEN_LOOKS = 0.5
PATIENCE_SECONDS = 10.0
PATIENCE_FILES = 3
"""The first process makes the files of the others when none has appeared for the seconds, and for as long as that many
of its own files took: the variables of a launcher may speak of processes that were never started.
"""


@dataclass(frozen=True)
class Launch:
    """This process among those that a launcher started on one folder, each of which makes its share of the files."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


ALONE = Launch()


@dataclass(frozen=True)
class Prepared:
    """The data set, and what of it was made now."""

    index: DataSetIndex
    num_files_made: int


def prepare(
    request: Request,
    out: Path,
    num_processes: int = 1,
    on_rows: OnRows = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
    launch: Launch = ALONE,
) -> Prepared | None:
    """Make, continue or mend the data set in `out`; None in a process that is not the first of its launch.

    Raises `ConfigError` for a source, a model or a folder that does not fit, before anything is encoded.
    """
    if launch.world > 1:
        end_with(os.getppid())
    source = open_request(request)
    encoders = find_encoders(request.vae, request.t5, request.clip)
    vae = read_vae_config(request.vae, encoders.folders["vae"])
    _check_size(request, vae)
    tasks = deal_rows(request, len(source), lambda row: isinstance(load_row(source, row, request.image_size), Loaded))
    _check_out(out)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    folder = _settle(request, source, encoders, out, tasks)
    whole = (out / INDEX_FILE).is_file()
    mine = tasks[launch.rank :: launch.world]
    waiting = [task for task in mine if not folder.is_made(task, verify=whole)]
    if waiting and len(waiting) < len(mine):
        say(f"{len(mine) - len(waiting)} of {len(mine)} files are there already.")
    for task in waiting:
        folder.remove_unfinished(task)
    total, done = num_rows(mine), num_rows(mine) - num_rows(waiting)
    on_rows(done, total)

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        on_rows(done, total)

    started, first_device = time.monotonic(), launch.local_rank * num_processes
    encode_shards(request, waiting, folder, num_processes, first_device, count)
    if launch.rank:
        return None
    seconds_of_file = (time.monotonic() - started) / max(1, len(waiting) // num_processes)
    patience_seconds = PATIENCE_SECONDS + PATIENCE_FILES * seconds_of_file
    absent = _wait_for_others(tasks, folder, patience_seconds, on_rows, say)
    total, done = num_rows(tasks), num_rows(tasks) - num_rows(absent)
    encode_shards(request, absent, folder, num_processes, first_device, count)
    return Prepared(_write_index(request, source, encoders, vae, tasks, folder), len(waiting) + len(absent))


def num_rows(tasks: Sequence[ShardTask]) -> int:
    """The number of rows of all tasks together."""
    return sum(len(task.rows) for task in tasks)


def _wait_for_others(
    tasks: Sequence[ShardTask], folder: SetFolder, patience_seconds: float, on_rows: OnRows, say: Callable[[str], None]
) -> list[ShardTask]:
    """Until the other processes of a launch have made their files, or make none any more: those are returned.

    A process that is late nevertheless makes the same files again, which does no harm. The launcher ends all processes
    where one fails.
    """
    waiting = [task for task in tasks if not folder.is_made(task, verify=False)]
    if waiting:
        say("The files of this process are made; waiting for those of the others.")
    last_change = time.monotonic()
    while waiting:
        on_rows(num_rows(tasks) - num_rows(waiting), num_rows(tasks))
        time.sleep(SECONDS_BETWEEN_LOOKS)
        left = [task for task in waiting if not folder.is_made(task, verify=False)]
        if len(left) < len(waiting):
            last_change = time.monotonic()
        elif time.monotonic() - last_change > patience_seconds:
            say(f"No other process has made a file for {patience_seconds:.0f} s: making the rest here.")
            break
        waiting = left
    return waiting


def _check_out(out: Path) -> None:
    """`safetensors` opens no path that is not Unicode."""
    if os.path.isfile(out):
        raise ConfigError(f"{out} is a file.", "Name a folder, or one that does not exist.")
    if any(0xDC80 <= ord(character) <= 0xDCFF for character in str(out)):  # bytes that are no UTF-8
        raise ConfigError(f"the name of the folder {printable(str(out))} is not Unicode.", "Name another folder.")


def _check_size(request: Request, vae: VaeConfig) -> None:
    """A VAE with n blocks divides the side of an image by 2^(n - 1)."""
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if request.image_size % factor:
        raise ConfigError(
            f"--image-size {request.image_size} is not divisible by {factor}, by which the VAE divides it.",
            f"Use --image-size {-(-request.image_size // factor) * factor}.",
        )


def _settle(
    request: Request, source: SourceRows, encoders: EncoderFolders, out: Path, tasks: Sequence[ShardTask]
) -> SetFolder:
    """The folder belongs to this request from now on; a `ConfigError` names what another one asked for."""
    wanted = {
        **{key: value for key, value in asdict(request).items() if key not in ("source", "vae", "t5", "clip")},
        "image_column": source.image_column,
        "caption_column": source.caption_column,
        "num_rows": len(source),
        "source_sha256": source.sample_sha256(),
        **{f"{name}_sha256": getattr(encoders, name).sha256 for name in ("vae", "t5", "clip")},
    }
    path, folder = out / REQUEST_FILE, SetFolder(out, _digest(wanted))
    if not os.path.lexists(path):
        if any(not each.name.startswith(".") for each in out.iterdir()):
            raise ConfigError(f"{out} holds other files.", "Name an empty folder, or one that does not exist.")
        write_json_atomic(path, wanted)
        return folder
    stored = _read_request(path)
    if stored is None:
        _mend_request(path, wanted, folder, tasks)
        return folder
    different = [key for key in wanted if key in stored and stored[key] != wanted[key]]
    if different:
        key = different[0]
        named = f"{shortened(printable(str(stored[key])), 80)} there, {wanted[key]} here"
        raise ConfigError(
            f"{out} was begun with another {key.removesuffix('_sha256')}: "
            f"{'its content is not the same' if key.endswith('_sha256') else named}.",
            "Use the same to continue it, or name another folder.",
        )
    return folder


def _digest(wanted: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def _read_request(path: Path) -> dict[str, Any] | None:
    """What the data set was begun with; None where that cannot be read."""
    try:
        stored = json.loads(read_input(path))
    except (OSError, ValueError, RecursionError):
        return None
    return stored if isinstance(stored, dict) else None


def _mend_request(path: Path, wanted: dict[str, Any], folder: SetFolder, tasks: Sequence[ShardTask]) -> None:
    """The notes say which files belong to this request, and the others are made again; older notes do not say it."""
    if any(note.request is None for task in tasks if (note := folder.read_note(task))):
        raise ConfigError(
            f"{path} is damaged, and nothing else says what the data set was begun with.", "Name another folder."
        )
    write_json_atomic(path, wanted)


def _write_index(
    request: Request, source: SourceRows, encoders: EncoderFolders, vae: VaeConfig, tasks: Sequence[ShardTask],
    folder: SetFolder,
) -> DataSetIndex:  # fmt: skip
    """From the notes, so that it is the same whoever made the shards; then the list of what was left out."""
    out, notes = folder.path, [note for task in tasks if (note := folder.read_note(task))]
    assert len(notes) == len(tasks)
    shards = [note.entry for note in notes if isinstance(note.entry, Shard)]
    left_out = sorted((one for note in notes for one in note.left_out), key=lambda one: one.row)
    lines = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in left_out)
    replace_atomically(out / LEFT_OUT_FILE, lines.encode())
    for split in ("train", "validation"):
        if not any(shard.num_images for shard in shards if shard.split == split):
            raise ConfigError(
                f"no image of the {split} split could be used; the first: {left_out[0].name}, {left_out[0].reason}.",
                f"All are listed in {out / LEFT_OUT_FILE}. Mend them or add others, and name another folder.",
            )
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "image_size": request.image_size,
        **_shapes(out, shards),
        "scaling_factor": vae.scaling_factor,
        "shift_factor": vae.shift_factor or 0.0,
        "vae": encoders.vae.model_dump(),
        "t5": encoders.t5.model_dump(),
        "clip": encoders.clip.model_dump(),
        "source": Source(
            path=printable(request.source), num_rows=len(source), image_column=source.image_column,
            caption_column=source.caption_column,
        ).model_dump(),
        "empty_caption": notes[0].entry.model_dump(),
        "shards": [shard.model_dump(exclude_none=True) for shard in shards],
        "num_damaged": len(left_out),
        "caption_length": request.max_tokens,
    }  # fmt: skip
    content["fingerprint"] = fingerprint_of(content)
    write_json_atomic(out / INDEX_FILE, content)
    return DataSetIndex.model_validate(content)


def _shapes(out: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """What the networks made of an image and a caption."""
    first = MappedShard(out / next(shard.file for shard in shards if shard.num_images))
    text_TV, pooled_U = first.text(0)
    _, channels, latent_size, _ = first.latent_mean_NCHW.shape
    return {
        "channels": channels,
        "latent_size": latent_size,
        "text_width": text_TV.shape[1],
        "pooled_width": len(pooled_U),
    }
