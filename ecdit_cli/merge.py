"""`ecdit merge` makes a run with experts of finished dense runs, as SegMoE does, without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ecdit_cli._options import Json
from experiments.errors import ConfigError


def merge(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of finished dense runs that differ in their seeds.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create for the merged run.")],
    from_prompts: Annotated[
        bool,
        typer.Option(
            "--router-from-prompts",
            help="Compute the routers while each run denoises its validation captions. Default: random routers.",
        ),
    ] = False,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Captions that each run denoises. Default: the run's eval.images."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=4096, help="Experts that serve a batch: routing.top_k.")] = 2,
    sparse_layers: Annotated[
        Literal["alternate", "all"], typer.Option(help="Blocks that get experts: model.sparse_layers.")
    ] = "alternate",
    as_json: Json = False,
) -> None:
    """Merge dense runs into one run with experts (SegMoE), without training. Sample and evaluate it like any run.

    Examples: ecdit merge out/runs/A out/runs/B out/runs/C out/merged --router-from-prompts
    """
    from ecdit_cli._console import print_json, say
    from ecdit_cli._progress import progress

    if prompts is not None and not from_prompts:
        raise ConfigError("--prompts has no effect without --router-from-prompts.", "Add it, or leave out --prompts.")
    with progress("importing torch") as show:
        from experiments.evaluation.exchange.merged_run import MergeOptions, merge_runs
        from experiments.records.run_folder import RunDir

        options = MergeOptions(top_k, sparse_layers, from_prompts, prompts)
        folders = [RunDir(run) for run in runs]
        record = merge_runs(folders, out, options, ["ecdit", *sys.argv[1:]], show)
    parts = [part.name for part in record.parts or ()]
    if as_json:
        print_json({"run": str(out), "parts": parts, "params_total": record.params_total})
        return
    say(f"Merged {len(parts)} runs into {out} ({record.params_total:,} parameters): {', '.join(parts)}.")
    say(f"Sample it: ecdit sample {out}")
