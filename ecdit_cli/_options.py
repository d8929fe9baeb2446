"""The options that commands share, each spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE",
        default_factory=list,
        show_default=False,
        help="Settings, e.g. model=nano routing=expert_choice routing.num_experts=16; later ones win.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings as YAML; KEY=VALUE is put on top.")
]
RunDirectory = Annotated[Path | None, typer.Option("--run-dir", metavar="DIR", help="Folder of the run.")]
OutDirectory = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to.")]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUNS", default_factory=list, show_default=False, help="Run folders, or folders that hold them."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and what it costs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
