"""`ecdit sample` draws images of given captions from a trained run as one grid, with the compute of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecdit_cli._console import say
from ecdit_cli._options import (
    CaptionFile,
    Captions,
    Classes,
    DataSetFolder,
    DsgFolder,
    EmaWidth,
    GenevalFolder,
    Grid,
    GuidanceChannels,
    GuidanceInterval,
    Json,
    PerCaption,
    Precision,
    SampleBatch,
    Sampler,
    SampleSeed,
    Scale,
    Shift,
    Steps,
    VaeModel,
    Weights,
    WithComputeMap,
)  # fmt: skip
from ecdit_cli._progress import Display, progress
from experiments.text import agreeing

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.evaluation.exchange.image_folders import Prompt
    from experiments.evaluation.metrics.judge import Verdict
    from experiments.evaluation.sampling.load_run import LoadedRun
    from experiments.evaluation.sampling.settings import Conditions
    from experiments.records.compute_map import ComputeMap


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    captions: Captions,
    classes: Classes,
    grid: Grid = None,
    compute_map: WithComputeMap = False,
    per_caption: PerCaption = 1,
    guidance: Scale = None,
    guidance_interval: GuidanceInterval = "0,1",
    guidance_channels: GuidanceChannels = None,
    steps: Steps = None,
    sampler: Sampler = "euler",
    shift: Shift = None,
    weights: Weights = "ema",
    ema: EmaWidth = None,
    precision: Precision = "auto",
    seed: SampleSeed = None,
    batch_images: SampleBatch = 16,
    geneval: GenevalFolder = None,
    dsg: DsgFolder = None,
    caption_file: CaptionFile = None,
    vae: VaeModel = None,
    data_set: DataSetFolder = None,
    as_json: Json = False,
) -> None:
    """Make images of captions with a trained run, and say whether they show what they should.

    A run on latents makes images of the first captions of its validation set, and needs the VAE of its data set. A run
    with static captions takes any caption. A run that is conditioned on classes takes --class in place of captions.

    Example: ecdit sample out/runs/NAME "a red circle left of a blue square" "two green hearts" --compute-map
    """
    from experiments.records.run_folder import RunDir

    _check_files(grid_file := grid or RunDir(run).samples / "grid.png", compute_map)
    given = _prompts(captions, caption_file)
    from ecdit_cli._sampling import checked_number, sampler_settings
    from experiments.evaluation.exchange.image_folders import Prompt

    with progress("importing torch") as show:
        from experiments.evaluation.sampling.latent_samples import with_data_set
        from experiments.evaluation.sampling.load_run import load_run
        from experiments.evaluation.sampling.prompts import asked_of
        from experiments.evaluation.sampling.settings import Conditions
        from experiments.training.host_memory import keep_freed_memory

        loaded = load_run(RunDir(run), weights, show.say, None if precision == "auto" else precision, ema)
        loaded = with_data_set(loaded, data_set)
        config = loaded.config
        asked = asked_of(loaded, [prompt.text for prompt in given], classes, compute_map, show.say)
        keep_freed_memory(config)
        settings = sampler_settings(config, steps, (guidance, guidance_interval, guidance_channels), shift, sampler)
        drawn = (checked_number(len(asked), per_caption), batch_images, config.data.seed if seed is None else seed)
        _check_exports(loaded, asked, given, per_caption, geneval, dsg)
        conditions = Conditions(*drawn, weights, loaded.precision, settings)
        texts, made = _make(loaded, asked, per_caption, conditions, compute_map, vae, show)
        prompts = given or [Prompt(text) for text in texts]
        show.part("drawing")
        files = _write(made, prompts, per_caption, grid_file, geneval, dsg)
    _print(made, prompts, per_caption, files, as_json)


@dataclass(frozen=True)
class _Made:
    """Sampled images [B, C, H, W] in [-1, 1], with verdicts where the judge can read the caption."""

    run: LoadedRun
    images_BCHW: Tensor
    verdicts: list[Verdict | None]
    compute_map: ComputeMap | None


def _prompts(captions: Sequence[str], caption_file: Path | None) -> list[Prompt]:
    from experiments.evaluation.exchange.image_folders import Prompt, read_prompts

    return [Prompt(caption) for caption in captions] + (read_prompts(caption_file) if caption_file else [])


def _make(
    run: LoadedRun, asked: list[str] | list[int], per_caption: int, conditions: Conditions, wants_map: bool,
    vae: str | None, show: Display,
) -> tuple[list[str], _Made]:  # fmt: skip
    """Samples every caption or class `per_caption` times; images are numbered across them.

    A run that reads stored captions is asked for as many of its validation set where none is given. Returns what was
    asked for as texts.
    """
    from experiments.config.data_sets import captions_of, data_set_of
    from experiments.evaluation.inference.mapped_samples import sample_captions
    from experiments.evaluation.sampling.batches import num_calls
    from experiments.evaluation.sampling.generate import caption_ids
    from experiments.evaluation.sampling.latent_samples import opened_decoder
    from experiments.evaluation.sampling.prompts import texts_of

    if not captions_of(run.config).in_words and run.config.data.num_classes is None:
        return _make_of_features(run, [str(each) for each in asked], per_caption, conditions, vae, show)
    caption_ids(run.config, asked)  # raises for words that the run has never seen, before the decoder is opened
    decode = opened_decoder(run, vae)
    prompts: Any = [each for each in asked for _ in range(per_caption)]
    doing = f"sampling {len(prompts)} image{'' if len(prompts) == 1 else 's'}"
    on_call = show.counter(num_calls(len(prompts), conditions, run.config), doing)
    made = sample_captions(run, prompts, conditions, wants_map, on_call, decode=decode)
    unjudged: list[Verdict | None] = [None] * len(prompts)
    judged = data_set_of(run.config).has_scenes and run.config.data.num_classes is None
    verdicts = _verdicts(made.images_BCHW, texts_of(run, prompts), show) if judged else unjudged
    return texts_of(run, asked), _Made(run, made.images_BCHW, verdicts, made.compute_map)


def _make_of_features(
    run: LoadedRun, captions: list[str], per_caption: int, conditions: Conditions, vae: str | None,
    show: Display,
) -> tuple[list[str], _Made]:  # fmt: skip
    """Samples captions, or as many of the validation set where all are empty, each `per_caption` times."""
    from experiments.evaluation.sampling.batches import num_calls
    from experiments.evaluation.sampling.latent_samples import sample_validation

    num_images = len(captions) * per_caption
    on_call = show.counter(num_calls(num_images, conditions, run.config), f"sampling {num_images} images")
    made = sample_validation(run, captions if any(captions) else len(captions), per_caption, conditions, vae, on_call)
    unjudged: list[Verdict | None] = [None] * len(made.images_BCHW)
    return made.captions, _Made(run, made.images_BCHW, unjudged, None)


def _verdicts(images_BCHW: Tensor, captions: Sequence[str], show: Display) -> list[Verdict | None]:
    """Returns a verdict for each image, or None where its caption is no sentence of the grammar.

    The model can be asked anything, the judge cannot. Images too small for the judge are all None, with a message.
    """
    from experiments.config.metrics import MIN_JUDGED_SIZE, UNRELIABLE_BELOW
    from experiments.data.scenes.captions import parse
    from experiments.errors import ConfigError
    from experiments.evaluation.metrics.judge import judge

    if images_BCHW.shape[-1] < MIN_JUDGED_SIZE:
        show.say(f"Images of {images_BCHW.shape[-1]} pixels are not judged: {UNRELIABLE_BELOW}.")
        return [None] * len(captions)
    verdicts: list[Verdict | None] = []
    for number, caption in enumerate(captions):
        try:
            assertion = parse(caption)
        except ConfigError:
            verdicts.append(None)
            continue
        verdicts += judge(images_BCHW[number : number + 1], [assertion])
    return verdicts


def _write(
    made: _Made, prompts: Sequence[Prompt], per_caption: int, grid_file: Path, geneval: Path | None, dsg: Path | None
) -> list[Path]:  # fmt: skip
    """Writes the exports, which can be large, then the grid and the compute map; returns the paths of all of them."""
    import torch

    from analysis.figures.compute_map import draw_compute_map
    from analysis.figures.sample_grid import draw_sample_grid, num_captions_shown
    from analysis.style import write_drawing, write_png
    from experiments.evaluation.exchange.image_folders import write_dsg_images, write_geneval_images
    from experiments.evaluation.sampling.batches import as_pixels

    if geneval is not None:
        write_geneval_images(geneval, prompts, torch.split(made.images_BCHW, per_caption))
    if dsg is not None:
        write_dsg_images(dsg, prompts, made.images_BCHW[::per_caption])
    shown = [prompt.text for prompt in prompts[: num_captions_shown(len(prompts), per_caption)]]
    here = slice(len(shown) * per_caption)
    notes = [_note(verdict) for verdict in made.verdicts[here]]
    write_png(draw_sample_grid(as_pixels(made.images_BCHW[here]).numpy(), shown, notes, per_caption), grid_file)
    written = [grid_file]
    if made.compute_map is not None:
        name = _files(grid_file, compute_map=True)[-1].stem
        title = f"{made.run.run_dir.path.resolve().name}, {made.run.images_seen:,} training images"
        written += write_drawing(draw_compute_map(made.compute_map, title), grid_file.parent, name)
    written += [folder for folder in (geneval, dsg) if folder is not None]
    return written


def _check_files(grid_file: Path, compute_map: bool) -> None:
    """Refuses files that cannot be written before the sampling, which takes minutes."""
    from experiments.errors import EcditError
    from experiments.records.outputs import require_ours

    if grid_file.suffix.lower() != ".png":
        raise EcditError(f"--grid {grid_file} is not a PNG.", "Name a file that ends in .png.")
    require_ours(_files(grid_file, compute_map))


def _files(grid_file: Path, compute_map: bool) -> list[Path]:
    """Returns the path of the grid, and the files of the compute map beside it where it is asked for."""
    kinds = ("png", "svg", "csv") if compute_map else ()
    return [grid_file, *(grid_file.with_name(f"{grid_file.stem}-compute-map.{kind}") for kind in kinds)]


def _check_exports(
    run: LoadedRun, asked: list[str] | list[int], given: Sequence[Prompt], per_caption: int, geneval: Path | None,
    dsg: Path | None,
) -> None:  # fmt: skip
    """Refuses exports of what is asked for that cannot be made, before the sampling, which takes minutes."""
    from experiments.evaluation.exchange.image_folders import Prompt, check_dsg_images, check_geneval_images
    from experiments.evaluation.sampling.latent_samples import texts_to_sample

    if geneval is None and dsg is None:
        return
    prompts = given or [Prompt(text) for text in texts_to_sample(run, asked)]
    if geneval is not None:
        check_geneval_images(geneval, prompts, per_caption)
    if dsg is not None:
        check_dsg_images(dsg, prompts)


def _note(verdict: Verdict | None) -> str:
    """Returns the text under an image."""
    if verdict is None:
        return ""
    return "right" if verdict.correct else f"wrong: {verdict.reason}"


def _print(made: _Made, prompts: Sequence[Prompt], per_caption: int, files: Sequence[Path], as_json: bool) -> None:
    """Prints what each image shows, and where the files are."""
    from analysis.columns import Column
    from analysis.figures.sample_grid import num_captions_shown
    from ecdit_cli._console import print_json, print_rows

    texts = [prompt.text for prompt in prompts for _ in range(per_caption)]
    rows = [
        {"caption": text, "verdict": _note(verdict) or None, "found": _found(verdict)}
        for text, verdict in zip(texts, made.verdicts, strict=True)
    ]
    if (shown := num_captions_shown(len(prompts), per_caption)) < len(prompts):
        say(f"The grid shows the images of the first {shown:,} of {len(prompts):,} captions.")
    if as_json:
        print_json({"images_seen": made.run.images_seen, "images": rows, "files": [str(path) for path in files]})
        return
    asked = "caption" if made.run.config.data.num_classes is None else "class"
    columns = [Column("caption", asked, prose=True)]
    if any(made.verdicts):  # images of classes are not judged
        columns += [Column("verdict", "verdict"), Column("found", "found in the image", prose=True)]
    print_rows(rows, columns, as_json=False)
    judged = [verdict.correct for verdict in made.verdicts if verdict is not None]
    if judged:
        shows = agreeing(sum(judged), "shows exactly what its", "show exactly what their")
        say(f"{sum(judged)} of {len(judged)} {shows} caption says.")
    for path in files:
        say(f"Wrote {path}")


def _found(verdict: Verdict | None) -> str | None:
    """Returns what the judge saw, such as `red circle, blue ?`, also where no caption was judged."""
    found = [f"{thing.color} {thing.shape or '?'}" for thing in verdict.found] if verdict is not None else None
    return None if found is None else ", ".join(found) or "nothing"
