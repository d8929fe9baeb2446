"""Implements `ecdit data prepare`, which encodes images and their text in several processes.

Rows are assigned to shards by number, and rows of one image to one split; a fixed permutation selects the validation
set. Each shard is made by one process and appears atomically, with a note beside it (`train-00000.json`: checksum, rows
left out). A command that was killed can therefore be repeated, continues, and ends with the same files. The index is
written last. Repeating the command on a complete data set makes only what is missing or damaged: a file, a note, the
request or the index.
The format is described in `experiments.config.prepared_set`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.prepared_set import INDEX_FILE, REQUEST_FILE, Credits, DataSetIndex, Encoder
from experiments.data.prepare.emoji import EMOJI
from experiments.data.prepare.encoder_configs import VaeConfig, read_clip_places, read_vae_config
from experiments.data.prepare.encoders import find_encoders
from experiments.data.prepare.encoding import Loaded, load_row
from experiments.data.prepare.encoding_processes import encode_shards, end_with, open_request
from experiments.data.prepare.image_forms import sizing_of
from experiments.data.prepare.index_writer import write_index
from experiments.data.prepare.pairing import is_hidden
from experiments.data.prepare.request import NEW_KEYS, Request
from experiments.data.prepare.shards import SetFolder, ShardTask, deal_rows
from experiments.data.prepare.source import SourceRows
from experiments.data.prepare.static_words import StaticWords, find_static_words
from experiments.errors import ConfigError
from experiments.inputs import parse_json, read_input
from experiments.records.storage import storage_errors, write_json_atomic
from experiments.text import agreeing, printable, shortened

REPEATED_KEY = "images_of_several_rows"
"""The key of a request that says how many images several rows have; it is absent where each row has its own image."""
UNSTORED: dict[str, Any] = {"text": "captions", "images": "latents", REPEATED_KEY: 0, **NEW_KEYS}
"""The values of keys that a stored request does not have."""
OnRows = Callable[[int, int], None]
"""A callback for progress that is given the number of rows that are done and the number of all rows."""
SECONDS_BETWEEN_LOOKS = 0.5
PATIENCE_SECONDS = 10.0
PATIENCE_FILES = 3
"""The first process makes the other processes' files itself when none has appeared for `PATIENCE_SECONDS` plus the time
of `PATIENCE_FILES` files of its own: a launcher's variables may count processes that were never started.
"""


@dataclass(frozen=True)
class Launch:
    """Identifies this process among those that a launcher started on one folder; each makes its part of the files."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


ALONE = Launch()


@dataclass(frozen=True)
class Prepared:
    """Holds the index of the finished data set, and the number of files that this call set out to make."""

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
    """Makes, continues or repairs the data set in `out`; returns None in all but the first process of a launch.

    Raises `ConfigError` before anything is encoded where the source, an encoder or the folder does not fit, and at the
    end where no image of a split could be used.
    """
    if launch.world > 1:
        end_with(os.getppid())
    source = open_request(request)
    for note in source.notes:  # first, as they may explain an error
        say(note)
    encoders = find_encoders(request.encoders)
    entries = encoders.entries | ({"static": find_static_words()} if request.text == "static" else {})
    vae = None if request.vae is None else read_vae_config(request.vae, encoders.folders["vae"])
    if vae is not None:
        _check_size(request, vae)
    if request.text == "clip":
        _check_tokens(request, read_clip_places(request.encoders["clip"], encoders.folders["clip"]))
    tasks = deal_rows(request, source, _is_usable(request, source))
    _check_out(request, out)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    folder = _settle(request, source, entries, out, tasks)
    whole = (out / INDEX_FILE).is_file()
    mine = tasks[launch.rank :: launch.world]
    _say_repeated(source.families.num_repeated, say)
    waiting = [task for task in mine if not folder.is_made(task, verify=whole)]
    if waiting and len(waiting) < len(mine):
        num_done = len(mine) - len(waiting)
        say(f"{num_done} of {len(mine)} files {agreeing(num_done, 'is', 'are')} there already.")
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
    encode_shards(request, absent, folder, num_processes, first_device, count, skip_made=True)
    return Prepared(write_index(request, source, entries, vae, tasks, folder), len(waiting) + len(absent))


def _is_usable(request: Request, source: SourceRows) -> Callable[[int], bool]:
    """Returns what says of a row that it is in the data set: it can be read and, for static captions, encoded."""
    sizing = sizing_of(request)
    words = StaticWords(request.max_tokens) if request.text == "static" else None

    def is_usable(row: int) -> bool:
        loaded = load_row(source, row, sizing)
        return isinstance(loaded, Loaded) and (words is None or words.problem(loaded.caption) is None)

    return is_usable


def _say_repeated(num_repeated: int, say: Callable[[str], None]) -> None:
    """Says how many images have several captions, because `--validation-images` then counts rows and not images."""
    if num_repeated:
        say(
            f"{num_repeated:,} {agreeing(num_repeated, 'image has', 'images have')} several rows. All rows of an image "
            "are either trained on or validated with."
        )


def num_rows(tasks: Sequence[ShardTask]) -> int:
    """Returns the number of rows of all tasks together."""
    return sum(len(task.rows) for task in tasks)


def _wait_for_others(
    tasks: Sequence[ShardTask], folder: SetFolder, patience_seconds: float, on_rows: OnRows, say: Callable[[str], None]
) -> list[ShardTask]:
    """Waits until the other processes have made their files, or none has for `patience_seconds`; returns the rest.

    A process that is merely late makes the same files a second time, which does no harm. If a process fails, its
    launcher ends all of them.
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


def _check_out(request: Request, out: Path) -> None:
    """Raises `ConfigError` where `out` is a file, or its path is not Unicode, which `safetensors` cannot open, or lies
    in the folder of the source, where its files would be listed as files of the source.
    """
    if os.path.isfile(out):
        raise ConfigError(f"{out} is a file.", "Name a folder, or one that does not exist.")
    if any(0xDC80 <= ord(character) <= 0xDCFF for character in str(out)):  # bytes that are no UTF-8
        raise ConfigError(f"the name of the folder {printable(str(out))} is not Unicode.", "Name another folder.")
    if request.source == EMOJI or not os.path.isdir(request.source):
        return
    source, folder = os.path.realpath(request.source), os.path.realpath(out)
    if os.path.commonpath((source, folder)) == source and not is_hidden(os.path.relpath(folder, source)):
        raise ConfigError(
            f"OUT {out} lies inside SOURCE {printable(request.source)}, whose files it would change.",
            "Name a folder beside it.",
        )


def _check_size(request: Request, vae: VaeConfig) -> None:
    """Raises `ConfigError` where the image size is not a multiple of 2^(n - 1), the scale of a VAE of n blocks."""
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if request.image_size % factor:
        raise ConfigError(
            f"--image-size {request.image_size} is not divisible by {factor}, by which the VAE divides it.",
            f"Use --image-size {-(-request.image_size // factor) * factor}.",
        )


def _check_tokens(request: Request, places: int) -> None:
    """Raises `ConfigError` where captions may have more tokens than CLIP, which encodes them alone, can read."""
    if request.max_tokens > places:
        raise ConfigError(
            f"--max-tokens {request.max_tokens} is more than the {places} tokens that --clip reads.",
            f"Use --max-tokens {places}.",
        )


def _settle(
    request: Request, source: SourceRows, encoders: Mapping[str, Encoder], out: Path, tasks: Sequence[ShardTask]
) -> SetFolder:
    """Returns the folder, bound to this request by a file. Raises `ConfigError` where it belongs to another request."""
    wanted = {
        **request.identity(),
        "image_column": source.image_column,
        "label_column" if request.text == "labels" else "caption_column": source.caption_column,
        **({} if source.class_names is None else {"class_order_sha256": _digest(source.class_names)}),
        **({} if source.origin is None else {"packages": _versions(source.origin)}),
        **({REPEATED_KEY: source.families.num_repeated} if source.families.num_repeated else {}),
        "num_rows": len(source),
        "source_sha256": source.sample_sha256(),
        **{f"{name}_sha256": encoder.sha256 for name, encoder in encoders.items()},
    }
    path, folder = out / REQUEST_FILE, SetFolder(out, _digest(wanted))
    # Another process of this launch may write the request and files at any moment. A network file system may say that
    # the request is not there although it lists it.
    with storage_errors(out):
        names = os.listdir(out)
    if REQUEST_FILE not in names and not os.path.lexists(path):
        if any(not name.startswith(".") for name in names):
            raise ConfigError(f"{out} holds other files.", "Name an empty folder, or one that does not exist.")
        write_json_atomic(path, wanted)
        return folder
    stored = _read_request(path)
    if stored is None:
        _mend_request(path, wanted, folder, tasks)
        return folder
    stored, wanted = (UNSTORED | each for each in (stored, wanted))
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


def _versions(origin: Credits) -> str:
    """Returns the packages of the images with their versions: in other versions they may have other images."""
    return ", ".join(f"{package.name} {package.version}" for package in origin.packages)


def _digest(wanted: dict[str, Any] | tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def _read_request(path: Path) -> dict[str, Any] | None:
    """Returns the stored request with which the data set was begun; None where it cannot be read."""
    try:
        stored = parse_json(read_input(path))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def _mend_request(path: Path, wanted: dict[str, Any], folder: SetFolder, tasks: Sequence[ShardTask]) -> None:
    """Writes a damaged request again. Notes hold the request's digest, so that files of another one are made again.

    Raises `ConfigError` where there are older notes without that digest.
    """
    if any(note.request is None for task in tasks if (note := folder.read_note(task))):
        raise ConfigError(
            f"{path} is damaged, and nothing else says what the data set was begun with.", "Name another folder."
        )
    write_json_atomic(path, wanted)
