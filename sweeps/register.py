"""`ecdit sweep --register` creates the sweep of a file on the W&B server, whose agents then run it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence

from experiments.config.yaml_file import read_yaml
from experiments.errors import EcditError
from experiments.records.wandb_mirror import ask_wandb, project_of
from sweeps.spec import find_spec, load_spec
from sweeps.tune_design import tune_design


def register_sweep(spec: str, overrides: Sequence[str], say: Callable[[str], None]) -> str:
    """Creates the sweep, and returns `entity/project/id`. `say` gets the lines that W&B prints about it.

    Raises `EcditError` where no key is configured, or where the server refuses.
    """
    checked = load_spec(spec)
    if overrides:
        raise EcditError(
            "--register cannot change settings of a sweep file.",
            "Write the settings into the command of the sweep file.",
        )
    if tune_design(checked) is not None:
        raise EcditError("ecdit.tune is not done by W&B agents, which train one run each.", "Run it with ecdit sweep.")
    _, has_key = ask_wandb("online")
    if not has_key:
        raise EcditError("No W&B key is configured.", "Log in with `wandb login`, or set WANDB_API_KEY.")
    import wandb

    content = read_yaml(find_spec(spec), EcditError, as_text=False).value
    content.setdefault("name", checked.name)
    content.setdefault("command", list(checked.command))  # the default of agents is `python ecdit`
    project = project_of(checked.project)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # wandb prints the id and the address of the sweep
            name = wandb.sweep(content, entity=checked.entity, project=project)
    except (wandb.Error, ValueError, OSError) as error:
        raise EcditError(f"W&B did not create the sweep: {error}", "Check the key and the server.") from error
    for line in said.getvalue().splitlines():
        say(line)
    return "/".join(part for part in (checked.entity, project, name) if part)
