"""The options that several commands share, each spelled and explained once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from experiments.config.sampler_rows import SAMPLERS
from experiments.errors import ConfigError, PluginError, did_you_mean
from experiments.text import printable, shortened

# Every number has a least and a greatest value; a test asks every option for both.
Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE",
        default_factory=list,
        show_default=False,
        help="Settings such as model=nano routing.num_experts=16; a later one replaces an earlier one.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Read settings from this YAML file; KEY=VALUE replaces what it says."
    ),
]
RunDirectory = Annotated[Path | None, typer.Option("--run-dir", metavar="DIR", help="Folder of the run.")]
OutDirectory = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to.")]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUNS", default_factory=list, show_default=False, help="Run folders, or folders that hold them."
    ),
]
FromProjects = Annotated[
    list[str],
    typer.Option(
        "--from", metavar="wandb:ENTITY/PROJECT", default_factory=list, show_default=False,
        help="Also the runs of a W&B project, with their full history; may be repeated.",
    ),
]  # fmt: skip
Smoothed = Annotated[
    bool, typer.Option("--smoothed", help="Fit laws to the ends of smoothed curves, and say by how much noise shrinks.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and what it would cost, and do nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PluginFiles = Annotated[
    list[Path],
    typer.Option(
        "--plugin", metavar="FILE", default_factory=list, show_default=False,
        help="A Python file with routers, metrics or figures of your own; may be repeated.",
    ),
]  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"ecdit {version('ecdit')}")
        raise typer.Exit()


ShowVersion = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and end.")
]

# Options of figures.
PaperValues = Annotated[
    bool, typer.Option("--paper-values", help="Also draw the numbers that EC-DIT printed, where there are any.")
]
Parameters = Annotated[
    str,
    typer.Option(
        metavar="COUNT",
        help="What counts as the size of a model: activated, total, activated-without-embeddings or "
        "total-without-embeddings.",
    ),
]

MAX_IMAGES = 100_000
"""The most images that are sampled at a time.

FID usually takes 50,000. The scenes of all captions are kept in memory.
"""
MAX_SEED = 2**63 - 1
MAX_GUIDANCE = 1000.0
MAX_SHIFT = 100.0
MIN_EMA_WIDTH = 0.001
MAX_EMA_WIDTH = 0.288
"""The widest average weighs all weights since the start of training alike (`power_profiles.py`)."""

# Options of sampling from a trained model, shared by every command that samples.
Weights = Annotated[Literal["raw", "ema"], typer.Option(help="Which weights: raw, or their moving average.")]
EmaWidth = Annotated[
    float | None,
    typer.Option(
        "--ema",
        min=MIN_EMA_WIDTH,
        max=MAX_EMA_WIDTH,
        help="With train.ema=power: width of the average of the weights. Default: that of training.",
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Precision of the model; auto is that of training."),
]
Steps = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="Steps of the sampler. Default: the run's eval.sample_steps.")
]


def _known_sampler(name: str) -> str:
    """Returns `name`. Raises `ConfigError` unless it is that of a sampler."""
    if name not in SAMPLERS:
        shown = shortened(printable(name), 80)
        raise ConfigError(f"--sampler '{shown}' is not a sampler.", did_you_mean(name, SAMPLERS))
    return name


Sampler = Annotated[
    str,
    typer.Option(
        metavar="|".join(SAMPLERS),
        callback=_known_sampler,
        help=f"Sampler: {'; '.join(f'{row.name}, {row.about}' for row in SAMPLERS.values())}.",
    ),
]
Shift = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=MAX_SHIFT,
        help="Shift of the timesteps; a value above 1 takes more steps near the noise. [default: the run's]",
        show_default=False,
    ),
]
GuidanceInterval = Annotated[
    str, typer.Option(metavar="START,STOP", help="Times t between which guidance applies; 1 is noise, 0 the image.")
]
GuidanceChannels = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4096,
        help="Guide only the first N channels, as the public code of DiT guides 3 of 4. Default: all channels.",
    ),
]
SampleSeed = Annotated[
    int | None,
    typer.Option(
        min=0, max=MAX_SEED, help="Seed of the noise, from which each image gets its own. Default: the run's data.seed."
    ),
]
SampleBatch = Annotated[int, typer.Option(min=1, max=16_384, help="Images sampled at a time.")]
SampledImages = Annotated[
    int, typer.Option(min=2, max=MAX_IMAGES, help="Images sampled of each run at each guidance scale.")
]

# What `ecdit evaluate` measures with, and results of other programs that it imports.
EmaWidths = Annotated[
    str | None,
    typer.Option(
        "--ema", help="With train.ema=power: widths of the average, separated by commas. Default: that of training."
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(help="Guidance scales, separated by commas; 1 is no guidance. Default: the run's eval.guidance."),
]
Rounds = Annotated[
    int, typer.Option(min=1, max=10_000, help="How often inference-time is measured; the median is recorded.")
]
InceptionWeights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of torch-fidelity's InceptionV3, which fid needs.")
]
ClipModel = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of a CLIP model as transformers saves it, which clip-score needs."),
]
ImportGeneval = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Add GenEval's results.jsonl to the one run named.")
]
ImportDsg = Annotated[Path | None, typer.Option(metavar="FILE", help="Add DSG's results to the one run named.")]
CheckJudge = Annotated[
    bool, typer.Option("--check-judge", help="Measure the judge of shapes-geneval itself; needs no run.")
]
Again = Annotated[bool, typer.Option("--again", help="Measure again what is already recorded.")]

# Options of `ecdit sample`.
Captions = Annotated[
    list[str],
    typer.Argument(
        metavar="CAPTION",
        default_factory=list,
        show_default=False,
        help="Captions to sample. Default: one of each kind.",
    ),
]
Classes = Annotated[
    list[str],
    typer.Option(
        "--class",
        metavar="CLASS",
        default_factory=list,
        show_default=False,
        help="Name or number of a class to sample, for a run that is conditioned on classes; may be repeated.",
    ),
]
CaptionFile = Annotated[
    Path | None,
    typer.Option(
        "--captions",
        metavar="FILE",
        help="A file with more captions, one in each line, or the prompt file of GenEval or DSG.",
    ),
]
Grid = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PNG file to write the grid to. Default: a file in RUN/samples.")
]
WithComputeMap = Annotated[bool, typer.Option("--compute-map", help="Also draw how many experts processed each token.")]
PerCaption = Annotated[int, typer.Option(min=1, max=1000, help="How many images to sample of each caption.")]
Scale = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=MAX_GUIDANCE,
        help="Scale of classifier-free guidance; 1 is no guidance. Default: the run's eval.guidance.",
    ),
]
VaeModel = Annotated[
    str | None,
    typer.Option("--vae", metavar="MODEL", help="VAE of a run on latents. Default: the one that the data set names."),
]
DataSetFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder of the data set of a run on prepared images. Default: the run's data.path.",
    ),
]
GenevalFolder = Annotated[
    Path | None, typer.Option("--geneval", metavar="FOLDER", help="Also write the images in GenEval's layout.")
]
DsgFolder = Annotated[
    Path | None, typer.Option("--dsg", metavar="FOLDER", help="Also write the images in DSG's layout.")
]

Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Estimate for this accelerator of the table, such as H100, instead of this machine."
    ),
]
Utilisation = Annotated[
    float | None, typer.Option(min=0.01, max=1, help="Share of the device's peak that training reaches.")
]


def with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """Returns `command` with the option `--plugin`, whose files are loaded before anything else is done."""

    @wraps(command)
    def with_loaded(plugin_files: list[Path], **arguments: Any) -> None:
        from experiments.distributed.launchers import adopt_ranks, leave_it_to_the_speaker
        from experiments.plugins.loading import load_plugins

        try:
            load_plugins(plugin_files)
        except PluginError as error:  # which all processes of a launcher meet
            if adopt_ranks():
                raise
            leave_it_to_the_speaker(error.exit_code)
        command(**arguments)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("plugin_files", inspect.Parameter.KEYWORD_ONLY, annotation=PluginFiles)
    with_loaded.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    return with_loaded


def plugins_last(words: list[str]) -> list[str]:
    """Returns the words of a command line with every `--plugin FILE` before the command moved to the end."""
    first = 0
    while first < len(words) and words[first].partition("=")[0] == "--plugin":
        first += 1 if "=" in words[first] else 2
    return words[first:] + words[:first]
