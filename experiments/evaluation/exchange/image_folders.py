"""Reads prompts from files, and writes images in the folder layouts that GenEval's and DSG's own programs read.

GenEval (Ghosh et al. 2023) reads `00000/metadata.jsonl` and `00000/samples/0000.png`, a numbered folder for each
prompt. For captions of the shapes data the metadata express in GenEval's terms what the caption asserts; their classes
are shapes, so they need a detector that knows shapes. DSG (Cho et al. 2024) reads `images/<item_id>_<model>.jpg` and
`prompts.csv`. `imports.py` reads their results.

Legend: S images of one prompt, C channels (3), H, W height and width.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from experiments.data.scenes.captions import Assertion, Term, parse
from experiments.errors import ConfigError
from experiments.evaluation.exchange.table_files import Row, rows_of, text_of, value_of
from experiments.evaluation.sampling.batches import as_pixels
from experiments.records.outputs import output_files, require_ours

GENEVAL_TAGS = {"color_attribution": "color_attr"}
"""Kinds of captions that have another name in GenEval."""


@dataclass(frozen=True)
class Prompt:
    """A caption, with GenEval's `metadata` or DSG's `item_id` where the file had them."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    item_id: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Reads the prompts of a file: captions (.txt), GenEval's evaluation_metadata (.jsonl) or DSG's table (.csv, .tsv).

    Raises `ConfigError` that names the line that is not as expected, or says that there is no prompt in the file.
    """
    readers = {".txt": _plain_prompts, ".jsonl": _geneval_prompts, ".csv": _dsg_prompts, ".tsv": _dsg_prompts}
    if path.suffix.lower() not in readers:
        raise ConfigError(
            f"cannot tell what kind of prompts {path} holds.",
            "Name it .txt (a caption a line), .jsonl (GenEval's evaluation_metadata) or .csv, .tsv (DSG's table).",
        )
    prompts = readers[path.suffix.lower()](path)
    if not prompts:
        raise ConfigError(f"{path} holds no prompt.")
    return prompts


def _plain_prompts(path: Path) -> list[Prompt]:
    lines = io.StringIO(text_of(path), newline=None)  # `splitlines` would also cut a caption at U+2028 and the like
    return [Prompt(line.strip()) for line in lines if line.strip()]


def _geneval_prompts(path: Path) -> list[Prompt]:
    return [_geneval_prompt(row) for row in rows_of(path)]


def _geneval_prompt(row: Row) -> Prompt:
    where, metadata = row
    value_of(row, "tag", str, "the name of a task")
    for number, clause in enumerate(value_of(row, "include", list, "a list of objects")):
        named = (f"{where}, include {number}", clause if isinstance(clause, dict) else {})
        value_of(named, "class", str, "the name of a class")
        value_of(named, "count", int, "a number of objects")
    return Prompt(value_of(row, "prompt", str, "a caption"), metadata)


def _dsg_prompts(path: Path) -> list[Prompt]:
    """Reads DSG's annotations, which have a line for each question; each item is one prompt."""
    texts: dict[str, str] = {}
    for row in rows_of(path):
        item_id = value_of(row, "item_id", str, "the name of an item")
        text = value_of(row, "text", str, "a caption")
        if not re.fullmatch(r"\w[\w.-]*", item_id):
            raise ConfigError(f"{row[0]}: expected an item_id of letters, digits, '_', '-' and '.', found {item_id!r}.")
        if texts.setdefault(item_id, text) != text:
            raise ConfigError(f"{row[0]}: item {item_id!r} has another text than before.")
    return [Prompt(text, item_id=item_id) for item_id, text in texts.items()]


def check_geneval_images(folder: Path, prompts: Sequence[Prompt], num_images: int) -> None:
    """Raises the errors of `write_geneval_images` that are known before `num_images` images of each prompt are sampled.

    These are `ConfigError` for a prompt without metadata and for a folder with other images in it, and `OutputError`
    for a file that ecdit did not write.
    """
    _geneval_lines(folder, prompts)
    names = [_geneval_image(number) for number in range(num_images)]
    for number in range(len(prompts)):
        samples = folder / _geneval_folder(number) / "samples"
        _refuse_others(samples, r"\d+\.png", set(names))
        require_ours([samples / name for name in names], folder)


def write_geneval_images(folder: Path, prompts: Sequence[Prompt], images_by_prompt: Iterable[Tensor]) -> None:
    """Writes the images [S, C, H, W] in [-1, 1] of each prompt in the layout of GenEval's `evaluate_images.py`.

    `images_by_prompt` is taken one prompt at a time, so that it may be sampled meanwhile. Raises `ConfigError` for a
    prompt without metadata and for a folder with other images in it, which GenEval would count; `OutputError` for a
    file that ecdit did not write; and `StorageError` when a file cannot be written.
    """
    lines = _geneval_lines(folder, prompts)
    for (name, line), images_SCHW in zip(lines.items(), images_by_prompt, strict=True):
        samples = folder / name / "samples"
        images = {_geneval_image(number): image for number, image in enumerate(_pictures(images_SCHW))}
        _refuse_others(samples, r"\d+\.png", set(images))
        with output_files([folder / name / "metadata.jsonl"], folder) as (part,):
            part.write_text(json.dumps(line), encoding="utf-8")
        _save(samples, images, folder)


def check_dsg_images(folder: Path, prompts: Sequence[Prompt], model: str = "ecdit") -> None:
    """Raises the errors of `write_dsg_images` that are known before anything is sampled.

    These are `ConfigError` for two prompts of one item_id and for a folder with other images in it, and `OutputError`
    for a file that ecdit did not write.
    """
    images = _dsg_images(prompts, model)
    _refuse_others(folder / "images", r".*\.jpg", set(images.values()))
    require_ours([folder / "images" / name for name in images.values()], folder)
    require_ours([folder / "prompts.csv"])


def write_dsg_images(folder: Path, prompts: Sequence[Prompt], images: Iterable[Tensor], model: str = "ecdit") -> None:
    """Writes the image [C, H, W] in [-1, 1] of each prompt to `images/<item_id>_<model>.jpg`, and `prompts.csv`.

    Prompts without an item_id are called custom_0, custom_1, ... The images are JPEG of the best quality, because DSG
    looks for that format. Raises the errors of `check_dsg_images`, and `StorageError` when a file cannot be written.
    """
    check_dsg_images(folder, prompts, model)
    names = _dsg_images(prompts, model)
    with output_files([folder / "prompts.csv"]) as (part,), part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("item_id", "text"), *zip(names, (p.text for p in prompts), strict=True)])
    for name, image_CHW in zip(names.values(), images, strict=True):
        _save(folder / "images", {name: _pictures(image_CHW[None])[0]}, folder)


def _dsg_images(prompts: Sequence[Prompt], model: str) -> dict[str, str]:
    """Returns the name of the image of each prompt by its item_id. Raises `ConfigError` for two of one item_id."""
    item_ids = [prompt.item_id or f"custom_{number}" for number, prompt in enumerate(prompts)]
    names = {item_id: f"{item_id}_{model}.jpg" for item_id in item_ids}
    if len(names) < len(item_ids):
        twice = next(item_id for item_id in names if item_ids.count(item_id) > 1)
        raise ConfigError(
            f"two of the captions would have the item_id {twice!r} of DSG, and one image would replace the other.",
            "Captions without one are called custom_0, custom_1, ...: put them into the file with names of their own.",
        )
    return names


def _geneval_lines(folder: Path, prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]]:
    """Returns the metadata of each prompt by the name of its folder.

    Raises `ConfigError` for a prompt without metadata and for a folder of other prompts, and `OutputError` for metadata
    that ecdit did not write.
    """
    lines = {_geneval_folder(number): _geneval_metadata(prompt) for number, prompt in enumerate(prompts)}
    _refuse_others(folder, r"\d+", set(lines))
    require_ours([folder / name / "metadata.jsonl" for name in lines], folder)
    return lines


def _geneval_folder(number: int) -> str:
    return f"{number:05}"


def _geneval_image(number: int) -> str:
    return f"{number:04}.png"


def _geneval_metadata(prompt: Prompt) -> dict[str, Any]:
    """Returns the prompt's own metadata, or what its words assert."""
    if prompt.metadata:
        return prompt.metadata
    try:
        assertion = parse(prompt.text)
    except ConfigError as error:
        raise ConfigError(
            f"GenEval cannot judge {prompt.text!r}: it is not a caption of the shapes data.",
            "Take the prompts from GenEval's evaluation_metadata.jsonl, which says what to look for.",
        ) from error
    include = [_clause(term) for term in assertion.terms]
    if assertion.relation is not None:  # GenEval names the reference object first
        include = [include[1], include[0] | {"position": [assertion.relation, 0]}]
    return {"tag": GENEVAL_TAGS.get(assertion.kind, assertion.kind), "include": include, **_too_many(assertion)} | {
        "prompt": prompt.text
    }


def _clause(term: Term) -> dict[str, Any]:
    """Returns GenEval's description of what must be found."""
    return {"class": term.shape, "count": term.count} | ({"color": term.color} if term.color else {})


def _too_many(assertion: Assertion) -> dict[str, Any]:
    """Returns what must not be found: for counting, one more than asked for."""
    if assertion.kind != "counting":
        return {}
    return {"exclude": [{"class": term.shape, "count": term.count + 1} for term in assertion.terms]}


def _pictures(images_BCHW: Tensor) -> list[Image.Image]:
    return [Image.fromarray(pixels.numpy()) for pixels in as_pixels(images_BCHW)]


def _save(folder: Path, images: dict[str, Image.Image], root: Path) -> None:
    """Writes the images under their names. Quality and subsampling concern JPEG only."""
    with output_files([folder / name for name in images], root) as parts:
        for part, image in zip(parts, images.values(), strict=True):
            image.save(part, quality=100, subsampling=0)


def _refuse_others(folder: Path, pattern: str, names: set[str]) -> None:
    """Raises `ConfigError` where `folder` holds other images, because an evaluation reads the whole folder."""
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in found - names if re.fullmatch(pattern, name))
    if others:
        raise ConfigError(f"{folder} holds {others[0]} of other images.", "Choose an empty folder.")
