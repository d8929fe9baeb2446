"""`ecdit data prepare`: captioned images to a data set of latents and text features, by several processes, resumable.

The rows of a source are dealt to shards by number alone, those of the validation set by a fixed permutation; each shard
is made by one process and appears whole or not at all, with a note beside it (`train-00000.json`: checksum, what was
left out). So a run that was killed goes on where it was and ends with the same files. The index comes last. Running it
again on a data set that is whole makes only what is missing or damaged. The format is described in
`experiments.config.data_set`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.config.data_set import (
    INDEX_FILE,
    REQUEST_FILE,
    SCHEMA_VERSION,
    DataSetIndex,
    FileEntry,
    Shard,
    Source,
    fingerprint_of,
)
from experiments.data.encoders import EncoderFolders, find_encoders
from experiments.data.latents import MappedShard
from experiments.data.processes import encode_shards, end_with, open_request
from experiments.data.shards import Request, ShardTask, deal_rows, is_made, read_note, remove_unfinished
from experiments.data.source import SourceRows
from experiments.errors import ConfigError
from experiments.records.storage import replace_atomically, storage_errors, write_json_atomic

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
    tasks = deal_rows(request, len(source))
    _check_size(request, encoders)
    if out.is_file():
        raise ConfigError(f"{out} is a file.", "Name a folder, or one that does not exist.")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    _settle(request, source, encoders, out)
    whole = (out / INDEX_FILE).is_file()
    mine = tasks[launch.rank :: launch.world]
    waiting = [task for task in mine if not is_made(out, task, verify=whole)]
    if waiting and len(waiting) < len(mine):
        say(f"{len(mine) - len(waiting)} of {len(mine)} files are there already.")
    for task in waiting:
        remove_unfinished(out, task)
    total, done = num_rows(mine), num_rows(mine) - num_rows(waiting)
    on_rows(done, total)

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        on_rows(done, total)

    started, first_device = time.monotonic(), launch.local_rank * num_processes
    encode_shards(request, waiting, out, num_processes, first_device, count)
    if launch.rank:
        return None
    seconds_of_file = (time.monotonic() - started) / max(1, len(waiting) // num_processes)
    patience_seconds = PATIENCE_SECONDS + PATIENCE_FILES * seconds_of_file
    absent = _wait_for_others(tasks, out, patience_seconds, on_rows, say)
    total, done = num_rows(tasks), num_rows(tasks) - num_rows(absent)
    encode_shards(request, absent, out, num_processes, first_device, count)
    return Prepared(_write_index(request, source, encoders, tasks, out), len(waiting) + len(absent))


def num_rows(tasks: Sequence[ShardTask]) -> int:
    """Of all of them."""
    return sum(len(task.rows) for task in tasks)


def _wait_for_others(
    tasks: Sequence[ShardTask], out: Path, patience_seconds: float, on_rows: OnRows, say: Callable[[str], None]
) -> list[ShardTask]:
    """Until the other processes of a launch have made their files, or make none any more: those are returned.

    A process that is late nevertheless makes the same files again, which does no harm. The launcher ends all processes
    where one fails.
    """
    waiting = [task for task in tasks if not is_made(out, task, verify=False)]
    if waiting:
        say("The files of this process are made; waiting for those of the others.")
    last_change = time.monotonic()
    while waiting:
        on_rows(num_rows(tasks) - num_rows(waiting), num_rows(tasks))
        time.sleep(SECONDS_BETWEEN_LOOKS)
        left = [task for task in waiting if not is_made(out, task, verify=False)]
        if len(left) < len(waiting):
            last_change = time.monotonic()
        elif time.monotonic() - last_change > patience_seconds:
            say(f"No other process has made a file for {patience_seconds:.0f} s: making the rest here.")
            break
        waiting = left
    return waiting


def _check_size(request: Request, encoders: EncoderFolders) -> None:
    """A VAE with n blocks divides the side of an image by 2^(n - 1)."""
    factor = 2 ** (len(_vae_config(encoders).get("block_out_channels", [0])) - 1)
    if request.image_size % factor:
        raise ConfigError(
            f"--image-size {request.image_size} is not divisible by {factor}, by which the VAE divides it.",
            f"Use --image-size {-(-request.image_size // factor) * factor}.",
        )


def _vae_config(encoders: EncoderFolders) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((encoders.folders["vae"] / "config.json").read_text(encoding="utf-8"))
    return config


def _settle(request: Request, source: SourceRows, encoders: EncoderFolders, out: Path) -> None:
    """The folder belongs to this request from now on; a `ConfigError` names what another one asked for."""
    wanted = {
        **{key: value for key, value in asdict(request).items() if key not in ("source", "vae", "t5", "clip")},
        "image_column": source.image_column,
        "caption_column": source.caption_column,
        "num_rows": len(source),
        "source_sha256": source.sample_sha256(),
        **{f"{name}_sha256": getattr(encoders, name).sha256 for name in ("vae", "t5", "clip")},
    }
    path = out / REQUEST_FILE
    if not path.is_file():
        if any(out.glob("*.safetensors")) or (out / INDEX_FILE).exists():
            raise ConfigError(f"{out} holds other files.", "Name an empty folder, or one that does not exist.")
        write_json_atomic(path, wanted)
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key in wanted if key in stored and stored[key] != wanted[key]]
    if different:
        key = different[0]
        named = f"{stored[key]} there, {wanted[key]} here"
        raise ConfigError(
            f"{out} was begun with another {key.removesuffix('_sha256')}: "
            f"{'its content is not the same' if key.endswith('_sha256') else named}.",
            "Use the same to continue it, or name another folder.",
        )


def _notes(out: Path, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        note = read_note(out, task)
        assert note is not None, task.name
        yield note


def _write_index(
    request: Request, source: SourceRows, encoders: EncoderFolders, tasks: Sequence[ShardTask], out: Path
) -> DataSetIndex:
    """From the notes, so that it is the same whoever made the shards; then the list of what was left out."""
    empty, *notes = _notes(out, tasks)
    shards = [Shard(**note["entry"]) for note in notes]
    left_out = sorted((one for note in notes for one in note["left_out"]), key=lambda one: int(one["row"]))
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in left_out)
    replace_atomically(out / LEFT_OUT_FILE, lines.encode())
    for split in ("train", "validation"):
        if not any(shard.num_images for shard in shards if shard.split == split):
            raise ConfigError(
                f"no image of the {split} split could be used; the first: {left_out[0]['name']}, "
                f"{left_out[0]['reason']}.",
                f"All are listed in {out / LEFT_OUT_FILE}.",
            )
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "image_size": request.image_size,
        **_shapes(out, shards),
        **_scales(encoders),
        "vae": encoders.vae.model_dump(),
        "t5": encoders.t5.model_dump(),
        "clip": encoders.clip.model_dump(),
        "source": Source(
            path=request.source, num_rows=len(source), image_column=source.image_column,
            caption_column=source.caption_column,
        ).model_dump(),
        "empty_caption": FileEntry(**empty["entry"]).model_dump(),
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


def _scales(encoders: EncoderFolders) -> dict[str, float]:
    """Of the VAE's config; diffusers' own defaults where it does not say."""
    config = _vae_config(encoders)
    return {
        "scaling_factor": float(config.get("scaling_factor", 0.18215)),
        "shift_factor": float(config.get("shift_factor") or 0.0),
    }
