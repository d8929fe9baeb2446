"""`ecdit data` prepares data sets of real images, and checks them at any time."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ecdit_cli._console import print_json, say
from ecdit_cli._options import Json
from ecdit_cli._progress import progress

if TYPE_CHECKING:
    from experiments.config.features_record import FeaturesRecord
    from experiments.config.prepared_set import DataSetIndex
    from experiments.data.prepare.job import Launch
    from experiments.data.prepare.request import Request

data = typer.Typer(help="Prepare real images for training, and check what was prepared.", invoke_without_command=True)
LISTED_ROWS = 5
"""The number of images left out that are listed; the file lists all."""
TITLES = {
    "gib": "GiB",
    "cut_for_t5": "cut for T5",
    "cut_for_clip": "cut for CLIP",
    "cut_for_static": "cut for the static embedding",
}
NO_VAE = "none"
DEFAULT_SIZES = {"latents": 256, "pixels": 32}
DEFAULT_TOKENS = {"captions": 120, "t5": 120, "clip": 77, "static": 32, "labels": 120}
Vae = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="Folder or Hub name of a diffusers AutoencoderKL that makes latents; none: pixels as they are.",
    ),
]
ImageFiles = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of images with captions or of folders of classes, .parquet or .tar (WebDataset), or a Hub "
        "data set; emoji: the drawings of the extra ecdit[emoji].",
    ),
]
T5 = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Folder or Hub name of a transformers T5EncoderModel, for captions."),
]
Clip = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Folder or Hub name of a transformers CLIPTextModel, for captions.")
]
Text = Annotated[
    Literal["captions", "t5", "clip", "static", "labels"] | None,
    typer.Option(
        help="captions: read by T5 and CLIP. t5, clip: read by that one alone. static: captions as word embeddings of "
        "the package wordllama. labels: the classes of images, which are their folders or a column. Default: captions "
        "with --vae, --t5 or --clip, else static."
    ),
]
Background = Annotated[str, typer.Option(metavar="COLOR", help="The colour that transparency becomes.")]
Flip = Annotated[
    bool,
    typer.Option(
        "--flip",
        help="For pixels: let training mirror images at random, except where their text names a side (left, right).",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="For --text labels: column or ending of labels. Default: folders of classes, or label, class, cls, ...",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(min=8, max=4096, help="Pixels of a side, after a centre crop. Default: 256, or 32 without a VAE."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=2, max=4096, help="Most tokens of a caption; the rest is cut. Default: 120, for clip 77, for static 32."
    ),
]
ValidationImages = Annotated[
    int | None,
    typer.Option(
        min=1, max=10**9, help="How many images to set apart for validation. Default: a twentieth, at most 512."
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        min=1, max=256, help="Number of processes. Each holds all encoders; accelerators are given out in turn."
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the data set.")]


@data.callback()
def explain(context: typer.Context) -> None:
    """Prepare real images for training, and check what was prepared."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data.command()
def prepare(
    source: ImageFiles,
    out: Folder,
    vae: Vae = NO_VAE,
    t5: T5 = None,
    clip: Clip = None,
    text: Text = None,
    image_size: ImageSize = None,
    max_tokens: MaxTokens = None,
    validation_images: ValidationImages = None,
    shard_images: Annotated[int, typer.Option(min=1, max=2**20, help="Number of images in each file.")] = 1024,
    batch_images: Annotated[int, typer.Option(min=1, max=4096, help="Images encoded at a time.")] = 16,
    processes: Processes = 1,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of a Hub data set. Default: train.")] = None,
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration of a Hub data set.")] = None,
    image_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of images, or their ending in tars and folders (input.jpg)."),
    ] = None,
    caption_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column or ending of captions; json.title is a key in JSON. Default: caption, ..."
        ),
    ] = None,
    label_column: LabelColumn = None,
    background: Background = "white",
    flip: Flip = False,
    as_json: Json = False,
) -> None:
    """Turn images into pixels or latents, and their captions into features. The same command continues or mends it.

    Rows that cannot be used are left out and listed in OUT/left_out.jsonl: without a caption or label, with text that
    is not UTF-8, damaged, larger than 67 megapixels, or outside of the folder of a table that names them. With --text
    labels images have classes, and no text encoder is needed. Without --vae images stay pixels; nothing is downloaded.

    A VAE, T5 and CLIP need the extra ecdit[data], static captions ecdit[static]. On several nodes, start it with
    torchrun or srun and a shared OUT. Then train with: ecdit train data.path=OUT (and model.block=dit for labels)
    """
    rank, world, local_rank = _launched()
    (say if rank == 0 else _nothing)("importing torch ...")
    from experiments.data.prepare.job import Launch
    from experiments.data.prepare.request import Request

    has_vae = vae != NO_VAE
    text = text or ("captions" if has_vae or t5 or clip else "static")
    image_size = image_size or DEFAULT_SIZES["latents" if has_vae else "pixels"]
    request = Request(
        source=source, vae=vae if has_vae else None, t5=t5, clip=clip, image_size=image_size,
        max_tokens=max_tokens or DEFAULT_TOKENS[text],
        validation_images=validation_images, shard_images=shard_images, batch_images=batch_images, split=split,
        subset=subset, image_column=image_column, caption_column=caption_column,
        text=text, label_column=label_column, background=background, flip=flip,
    )  # fmt: skip
    _make(request, out, processes, Launch(rank, world, local_rank), as_json)


def _make(request: Request, out: Path, processes: int, launch: Launch, as_json: bool) -> None:
    """Encodes this process's share. The first process of a launch also shows the progress of all, and the result."""
    from experiments.data.prepare.index_writer import LEFT_OUT_FILE
    from experiments.data.prepare.job import prepare

    if launch.rank:
        prepare(request, out, processes, launch=launch)
        return
    with progress("encoding", "images") as show:
        made = prepare(request, out, processes, show, show.say, launch)
    assert made is not None
    if not made.num_files_made:
        say(f"Finished already, nothing to do: {out}")
    _print(_summary(made.index, out, out / LEFT_OUT_FILE), as_json)


@data.command()
def features(out: Folder, as_json: Json = False) -> None:
    """Train the small network in whose features pictures of a set of pixels are measured, and say how good it is.

    It has a tower for images and one for captions or classes, and is written into the folder of the set. The same
    command on the same machine gives the same network; one that fits the set is left alone. Printed is the share of
    true images whose own caption is the nearest of 100, with its 95% interval.
    """
    from experiments.config.features_record import require_pixels

    require_pixels(out)
    say("importing torch ...")
    from experiments.evaluation.metrics.train_two_tower import make_features

    with progress("training", "steps") as show:
        record, was_trained = make_features(out, show)
    if not was_trained:
        say(f"Finished already, nothing to do: {out}")
    if as_json:
        print_json({"path": str(out), **record.model_dump(exclude_none=True)})
    else:
        _print(_features_summary(record, out), as_json=False)


def _features_summary(record: FeaturesRecord, out: Path) -> dict[str, object]:
    """Returns what the network is, and how often it finds the caption of a true image."""
    from experiments.evaluation.metrics.intervals import wilson

    found: dict[str, object] = {
        "path": str(out), "fingerprint": record.fingerprint, "features": record.digest,
        "trained_on_images": record.num_training_images,
    }  # fmt: skip
    for split, counted in (("validation", record.validation), ("held_out", record.held_out)):
        if counted is not None:
            low, high = wilson(counted.num_right, counted.num_images)
            found |= {
                f"{split}_retrieval": f"{counted.num_right / counted.num_images:.1%} ({low:.0%}-{high:.0%}) of "
                f"{counted.num_images}, among {counted.num_captions}"
            }
    return found


@data.command()
def check(out: Folder, as_json: Json = False) -> None:
    """Compare every file of a data set with its checksum."""
    from experiments.config.prepared_set import read_index

    index = read_index(out)
    say("importing torch ...")
    from experiments.data.sources.mapped_shards import check_content, check_length, check_tensors

    with progress("checking", "files") as show:
        for number, file in enumerate(index.files()):
            check_length(out, file)
            check_content(out, file)
            check_tensors(out, index, file)
            show(number + 1, len(index.files()))
    _print({"path": str(out), "fingerprint": index.fingerprint, "files": len(index.files()), "state": "whole"}, as_json)


def _summary(index: DataSetIndex, out: Path, left_out: Path) -> dict[str, object]:
    """Returns what a data set holds, and reports images that were left out and captions that were cut."""
    if index.num_damaged:
        say(f"Left out {index.num_damaged:,} of {index.source.num_rows:,} images: see {left_out}")
        with left_out.open(encoding="utf-8") as lines:
            for one in map(json.loads, islice(lines, LISTED_ROWS)):
                say(f"  {one['name']}: {one['reason']}")
        say("This set stays as it is: name another folder to use images that were mended.")
    cut = {name: index.num_cut(name) for name in ("t5", "clip", "static") if name in index.text_encoders}
    longest = index.caption_length
    if any(cut.values()) and len(cut) == 1:
        say(f"Too long and cut: {sum(filter(None, cut.values())):,} captions (--max-tokens {longest}).")
    elif any(cut.values()):
        say(f"Too long and cut: {cut['t5']:,} captions for T5 (--max-tokens {longest}), {cut['clip']:,} for CLIP.")
    held_out = index.num_images("held_out")
    return {
        "path": str(out),
        "fingerprint": index.fingerprint,
        "train_images": index.num_images("train"),
        "validation_images": index.num_images("validation"),
        **({"held_out_images": held_out} if held_out else {}),
        "left_out": index.num_damaged,
        **({} if index.class_names is None else {"classes": len(index.class_names)}),
        **{f"cut_for_{encoder}": number for encoder, number in cut.items() if number is not None},
        index.images: f"{index.channels} x {index.latent_size} x {index.latent_size}",
        "gib": sum(file.num_bytes for file in index.files()) / 2**30,
    }


def _launched() -> tuple[int, int, int]:
    """Returns rank, number of processes and local rank under a launcher, and hides them from libraries."""
    from experiments.distributed.launchers import work_share
    from experiments.environment import forget_ranks

    share = work_share()
    forget_ranks()
    return share


def _nothing(line: str) -> None:
    """Discards `line`: only the first process of a launch prints."""


def _print(row: dict[str, object], as_json: bool) -> None:
    """Prints one item on each line, because paths and fingerprints are too long for columns."""
    from analysis.columns import Column
    from ecdit_cli._console import print_rows

    if as_json:
        print_json(row)
        return
    shown = row | ({"gib": f"{row['gib']:.3g}"} if "gib" in row else {})
    lines = [{"what": TITLES.get(key, key.replace("_", " ")), "value": str(value)} for key, value in shown.items()]
    print_rows(lines, [Column("what", "data set"), Column("value", "", prose=True)], as_json=False)
