"""`ecdit import-weights` makes a run of weights that DiT's or DiT-MoE's public code has saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ecdit_cli._options import Json


def import_weights(
    layout: Annotated[
        Literal["dit", "dit-moe"],
        typer.Argument(metavar="dit|dit-moe", help="The public code: facebookresearch/DiT or feizc/DiT-MoE."),
    ],
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A file that the public code has saved.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create for the run.")],
    objective: Annotated[
        Literal["rectified_flow", "ddpm"],
        typer.Option(help="The objective that the weights were trained on, which the file does not say."),
    ],
    weights: Annotated[
        Literal["auto", "ema", "raw"], typer.Option(help="Weights to take; auto is EMA where the file has both.")
    ] = "auto",
    num_heads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Heads of attention, for sizes that DiT does not have.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=4096, help="Experts that a token picks: routing.top_k.")] = 2,
    as_json: Json = False,
) -> None:
    """Make a run of public weights of DiT or DiT-MoE, without executing the file. Sample and evaluate it like any run.

    Example: ecdit import-weights dit-moe dit_moe_xl_8E2A.pt out/dit-moe-xl --objective rectified_flow
    """
    from ecdit_cli._console import print_json, say
    from ecdit_cli._progress import progress

    with progress("importing torch"):
        from experiments.evaluation.exchange.imported_run import import_weights as imported

        kind = None if weights == "auto" else weights
        record = imported(layout, checkpoint, out, objective, kind, num_heads, top_k, ["ecdit", *sys.argv[1:]])
    if as_json:
        print_json({"run": str(out), "name": record.name, "params_total": record.params_total})
        return
    say(f"Imported {record.params_total:,} parameters into {out}.")
    say(f"Sample it: ecdit sample {out} --class 0 --vae MODEL")
