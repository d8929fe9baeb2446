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
    from experiments.config.prepared_set import DataSetIndex
    from experiments.data.prepare.job import Launch
    from experiments.data.prepare.shards import Request

data = typer.Typer(help="Prepare real images for training, and check what was prepared.", invoke_without_command=True)
LISTED_ROWS = 5
"""The number of images left out that are listed; the file lists all."""
TITLES = {"gib": "GiB", "cut_for_t5": "cut for T5", "cut_for_clip": "cut for CLIP"}
ImageFiles = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of images with captions or of folders of classes, .parquet or .tar (WebDataset), or a Hub "
        "data set.",
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
    Literal["captions", "labels"],
    typer.Option(help="captions, or labels: the classes of images, which are their folders or a column."),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="As --caption-column, for --text labels. Default: folders of classes, or label, class, cls, ...",
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
    vae: Annotated[str, typer.Option(metavar="MODEL", help="Folder or Hub name of a diffusers AutoencoderKL.")],
    t5: T5 = None,
    clip: Clip = None,
    text: Text = "captions",
    image_size: Annotated[int, typer.Option(min=8, max=4096, help="Pixels of a side, after a centre crop.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="T5 tokens of a caption, the rest is cut.")] = 120,
    validation_images: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**9, help="How many images to set apart for validation. Default: a twentieth, at most 512."
        ),
    ] = None,
    shard_images: Annotated[int, typer.Option(min=1, max=2**20, help="Number of images in each file.")] = 1024,
    batch_images: Annotated[int, typer.Option(min=1, max=4096, help="Images encoded at a time.")] = 16,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Number of processes. Each holds all models; accelerators are given out in turn."
        ),
    ] = 1,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration of a Hub data set.")] = None,
    image_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a table, or an ending in tars and folders (input.jpg). Default: found."),
    ] = None,
    caption_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="As --image-column; json.title is a key in JSON. Default: caption, text, txt, ..."
        ),
    ] = None,
    label_column: LabelColumn = None,
    as_json: Json = False,
) -> None:
    """Turn images into latents, and their captions into text features. The same command continues or mends it.

    Rows that cannot be used are left out and listed in OUT/left_out.jsonl: without a caption or label, with text that
    is not UTF-8, damaged, larger than 67 megapixels, or outside of the folder of a table that names them. With --text
    labels images have classes, and no text encoder is needed.

    Needs the extra ecdit[data]. On several nodes, start it with torchrun or srun and a shared OUT. Then train with:
    ecdit train data.name=latents data.path=OUT (and model.block=dit for labels)
    """
    rank, world, local_rank = _launched()
    (say if rank == 0 else _nothing)("importing torch ...")
    from experiments.data.prepare.job import Launch
    from experiments.data.prepare.shards import Request

    request = Request(
        source=source, vae=vae, t5=t5, clip=clip, image_size=image_size, max_tokens=max_tokens,
        validation_images=validation_images, shard_images=shard_images, batch_images=batch_images, split=split,
        subset=subset, image_column=image_column, caption_column=caption_column,
        text=text, label_column=label_column,
    )  # fmt: skip
    _make(request, out, processes, Launch(rank, world, local_rank), as_json)


def _make(request: Request, out: Path, processes: int, launch: Launch, as_json: bool) -> None:
    """Encodes this process's share. The first process of a launch also shows the progress of all, and the result."""
    from experiments.data.prepare.job import LEFT_OUT_FILE, prepare

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
def check(out: Folder, as_json: Json = False) -> None:
    """Compare every file of a data set with its checksum."""
    from experiments.config.prepared_set import read_index

    index = read_index(out)
    say("importing torch ...")
    from experiments.data.sources.latents import check_content, check_length, check_tensors

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
    cut = {"t5": index.num_cut("t5"), "clip": index.num_cut("clip")}
    if any(cut.values()):
        longest = index.caption_length
        say(f"Too long and cut: {cut['t5']:,} captions for T5 (--max-tokens {longest}), {cut['clip']:,} for CLIP.")
    return {
        "path": str(out),
        "fingerprint": index.fingerprint,
        "train_images": index.num_images("train"),
        "validation_images": index.num_images("validation"),
        "left_out": index.num_damaged,
        **({} if index.class_names is None else {"classes": len(index.class_names)}),
        **{f"cut_for_{encoder}": number for encoder, number in cut.items() if number is not None},
        "latents": f"{index.channels} x {index.latent_size} x {index.latent_size}",
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
