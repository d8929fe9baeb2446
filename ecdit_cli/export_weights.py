"""`ecdit export-weights` writes the whole weights of a run for inference, whatever its parallel layout was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ecdit_cli._options import EmaWidth, Json, Weights


def export_weights(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create for the weights.")],
    weights: Weights = "ema",
    ema: EmaWidth = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="Precision of the written weights; auto is the one that the run was trained in."),
    ] = "auto",
    shard_gib: Annotated[float, typer.Option(min=0.001, max=1024, help="Size of the largest file, in GiB.")] = 5.0,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Upload the folder to this repository of the Hugging Face Hub, with the token HF_TOKEN.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the newest checkpoint of a run as safetensors with a model card, without optimizer state.

    `ecdit sample OUT` reads them. A repository that --push-to-hub creates is private.

    Examples: ecdit export-weights out/runs/NAME out/weights --precision bf16
    """
    from analysis.model_card import model_card
    from ecdit_cli._console import print_json, say
    from ecdit_cli._progress import progress
    from experiments.evaluation.exchange.exported_weights import export_weights as write
    from experiments.evaluation.exchange.hub_upload import hub_repository
    from experiments.records.run_folder import RunDir

    repository = None if push_to_hub is None else hub_repository(push_to_hub)
    folder = RunDir(run)
    record = folder.read_run()
    kind = record.precision if precision == "auto" else precision
    with progress("exporting") as show:
        files = write(
            folder, out, weights, kind, round(shard_gib * 2**30), show.say,
            lambda written: show(written, record.params_total), ema, lambda exported: model_card(exported, folder),
        )  # fmt: skip
        if repository is not None:
            show.part(f"uploading to {repository.name}")
        address = None if repository is None else repository.upload(out)
    if as_json:
        print_json({
            "run": str(run),
            "weights": weights,
            **({} if ema is None else {"ema_width": ema}),
            "precision": kind,
            "params_total": record.params_total,
            "files": [str(file) for file in files],
            **({} if address is None else {"hub": address}),
        })  # fmt: skip
        return
    for written in (*files, *([] if address is None else [address])):
        say(str(written))
    shown = weights if ema is None else f"{weights} {ema:g}"
    say(f"{record.params_total:,} parameters ({shown}, {kind}). Sample them: ecdit sample {out}")
