"""`ecdit data prepare`: captioned images to a data set of latents and text features, by several processes, resumable.

The rows of a source are dealt to shards by number alone, those of the validation set by a fixed permutation; each shard
is made by one process and appears whole or not at all, with a note beside it (`train-00000.json`: checksum, what was
left out). So a run that was killed goes on where it was and ends with the same files. The index comes last. Running it
again on a data set that is whole makes only what is missing or damaged. The format is described in
`experiments.config.data_set`.
"""

from __future__ import annotations

import json
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
from experiments.data.processes import encode_shards
from experiments.data.shards import Request, ShardTask, deal_rows, is_made, read_note
from experiments.data.source import SourceRows, open_source
from experiments.errors import ConfigError
from experiments.records.storage import replace_atomically, storage_errors, write_json_atomic

LEFT_OUT_FILE = "left_out.jsonl"
OnRows = Callable[[int, int], None]
"""(rows done, rows in all)"""


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
) -> Prepared:
    """Make, continue or mend the data set in `out`.

    Raises `ConfigError` for a source, a model or a folder that does not fit, before anything is encoded.
    """
    source = open_source(request.source, request.split, request.image_column, request.caption_column)
    encoders = find_encoders(request.vae, request.t5, request.clip)
    tasks = deal_rows(request, len(source))
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    _settle(request, source, encoders, out)
    whole = (out / INDEX_FILE).is_file()
    waiting = [task for task in tasks if not is_made(out, task, verify=whole)]
    total, done = len(source), len(source) - sum(len(task.rows) for task in waiting)
    if waiting and len(waiting) < len(tasks):
        say(f"{len(tasks) - len(waiting)} of {len(tasks)} files are there already.")
    on_rows(done, total)

    def count(num_rows: int) -> None:
        nonlocal done
        done += num_rows
        on_rows(done, total)

    encode_shards(request, waiting, out, num_processes, count)
    return Prepared(_write_index(request, source, encoders, tasks, out), len(waiting))


def _settle(request: Request, source: SourceRows, encoders: EncoderFolders, out: Path) -> None:
    """The folder belongs to this request from now on; a `ConfigError` names what another one asked for."""
    wanted = {
        **{key: value for key, value in asdict(request).items() if key not in ("source", "vae", "t5", "clip")},
        "image_column": source.image_column,
        "caption_column": source.caption_column,
        "num_rows": len(source),
        **{f"{name}_sha256": getattr(encoders, name).sha256 for name in ("vae", "t5", "clip")},
    }
    path = out / REQUEST_FILE
    if not path.is_file():
        if any(out.glob("*.safetensors")) or (out / INDEX_FILE).exists():
            raise ConfigError(f"{out} holds other files.", "Name an empty folder, or one that does not exist.")
        write_json_atomic(path, wanted)
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key in wanted if stored.get(key) != wanted[key]]
    if different:
        key = different[0]
        raise ConfigError(
            f"{out} was begun with another {key}: {stored.get(key)} there, {wanted[key]} here.",
            "Use the same settings to continue it, or another folder.",
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
        "shards": [shard.model_dump() for shard in shards],
        "num_damaged": len(left_out),
        "caption_length": request.max_tokens,
    }  # fmt: skip
    content["fingerprint"] = fingerprint_of(content)
    write_json_atomic(out / INDEX_FILE, content)
    return DataSetIndex.model_validate(content)


def _shapes(out: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """What the networks made of an image and a caption."""
    first = MappedShard(out / next(shard.file for shard in shards if shard.num_images))
    mean_CHW, _ = first.latent(0)
    text_TV, pooled_U = first.text(0)
    channels, latent_size = mean_CHW.shape[:2]
    return {
        "channels": channels,
        "latent_size": latent_size,
        "text_width": text_TV.shape[1],
        "pooled_width": len(pooled_U),
    }


def _scales(encoders: EncoderFolders) -> dict[str, float]:
    """Of the VAE's config; diffusers' own defaults where it does not say."""
    config = json.loads((encoders.folders["vae"] / "config.json").read_text(encoding="utf-8"))
    return {
        "scaling_factor": float(config.get("scaling_factor", 0.18215)),
        "shift_factor": float(config.get("shift_factor") or 0.0),
    }
