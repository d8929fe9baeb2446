"""Writes the index of a data set whose files are all made, and the list of rows that were left out.

Both come from the notes beside the files, so that they do not depend on who made these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import ImageColor

from experiments.config.prepared_set import (
    FORMS_VERSION,
    INDEX_FILE,
    SCHEMA_VERSION,
    DataSetIndex,
    Encoder,
    Shard,
    Source,
    fingerprint_of,
)
from experiments.data.prepare.encoder_configs import VaeConfig
from experiments.data.prepare.request import NEW_KEYS, Request
from experiments.data.prepare.shards import SetFolder, ShardTask
from experiments.data.prepare.source import SourceRows
from experiments.data.sources.mapped_shards import MappedShard
from experiments.errors import ConfigError
from experiments.records.storage import replace_atomically, write_json_atomic
from experiments.text import printable

LEFT_OUT_FILE = "left_out.jsonl"


def write_index(
    request: Request, source: SourceRows, encoders: Mapping[str, Encoder], vae: VaeConfig | None,
    tasks: Sequence[ShardTask], folder: SetFolder,
) -> DataSetIndex:  # fmt: skip
    """Writes the list of rows left out and then the index. Raises `ConfigError` where a split has no usable image."""
    out, notes = folder.path, [note for task in tasks if (note := folder.read_note(task))]
    assert len(notes) == len(tasks)
    shards = [note.entry for note in notes if isinstance(note.entry, Shard)]
    left_out = sorted((one for note in notes for one in note.left_out), key=lambda one: one.row)
    lines = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in left_out)
    replace_atomically(out / LEFT_OUT_FILE, lines.encode())
    for split in ("train", "validation"):
        if not any(shard.num_images for shard in shards if shard.split == split):
            rows = {row for task in tasks if task.split == split for row in task.rows}
            first = next(one for one in left_out if one.row in rows)
            raise ConfigError(
                f"no image of the {split} split could be used; the first: {first.name}, {first.reason}.",
                f"All are listed in {out / LEFT_OUT_FILE}. Mend them or add others, and name another folder.",
            )
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "image_size": request.image_size,
        **_shapes(out, shards),
        **_form_of_images(request, vae),
        **{name: encoder.model_dump() for name, encoder in encoders.items()},
        "source": Source(
            path=printable(request.source), num_rows=len(source), image_column=source.image_column,
            caption_column=source.caption_column,
        ).model_dump(),
        **({} if source.origin is None else {"origin": source.origin.model_dump()}),
        "shards": [shard.model_dump(exclude_none=True) for shard in shards],
        "num_damaged": len(left_out),
    }  # fmt: skip
    if source.class_names is None:
        content |= {"caption_length": request.max_tokens, "empty_caption": notes[0].entry.model_dump()}
    else:
        content["class_names"] = list(source.class_names)
    if vae is None or request.text not in ("captions", "labels") or request.background != NEW_KEYS["background"]:
        content["schema_version"] = FORMS_VERSION
    content["fingerprint"] = fingerprint_of(content)
    write_json_atomic(out / INDEX_FILE, content)
    return DataSetIndex.model_validate(content)


def _form_of_images(request: Request, vae: VaeConfig | None) -> dict[str, Any]:
    """Returns what says how images are stored: the factors of latents, or that they are pixels."""
    color = "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(request.background))
    if vae is None:
        return {"images": "pixels", "background": color, **({"flips": True} if request.flip else {})}
    given = {} if request.background == NEW_KEYS["background"] else {"background": color}
    return {"scaling_factor": vae.scaling_factor, "shift_factor": vae.shift_factor or 0.0, **given}


def _shapes(out: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """Returns the sizes of images, and of text features where there are some, as a shard with images has them."""
    first = MappedShard(out / next(shard.file for shard in shards if shard.num_images))
    _, channels, side, _ = first.images.shape
    return {"channels": channels, "latent_size": side, **first.text_widths()}
