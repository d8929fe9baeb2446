"""The `ecdit` command: the list of its commands, and how errors become messages and exit codes.

A user's mistake is reported as one line on stderr, with the exit code of its `EcditError`; Ctrl-C as one line and 130.
Everything else is a bug and keeps its traceback. Command modules import what they need inside their functions, so that
`ecdit --help` does not import torch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from ecdit_cli._console import print_error, talk
from ecdit_cli._options import ShowVersion, plugins_last, with_plugins
from ecdit_cli._streams import UnwritableOutputError, guard_streams
from ecdit_cli.bench import bench
from ecdit_cli.check_router import check_router
from ecdit_cli.compare_routing import compare_routing
from ecdit_cli.data import data
from ecdit_cli.doctor import doctor
from ecdit_cli.evaluate import evaluate
from ecdit_cli.export import export
from ecdit_cli.export_weights import export_weights
from ecdit_cli.import_weights import import_weights
from ecdit_cli.merge import merge
from ecdit_cli.plan import plan
from ecdit_cli.plot import plot
from ecdit_cli.presets import presets
from ecdit_cli.report import report
from ecdit_cli.sample import sample
from ecdit_cli.status import status
from ecdit_cli.sweep import sweep
from ecdit_cli.train import train
from experiments.environment import forget_ranks, wait_briefly
from experiments.errors import ConfigError, EcditError, did_you_mean
from experiments.out_of_memory import out_of_memory
from experiments.text import printable, shortened

INTERRUPTED = 130
SHARED_COMMANDS = (("train",), ("data", "prepare"))
"""Commands that several processes of a launcher work on together; in all others each process works by itself."""

COMMANDS: tuple[tuple[Callable[..., None], bool], ...] = (
    # (function, whether it takes overrides, which may also be --KEY=VALUE as a W&B agent passes them)
    (train, True),
    (sweep, True),
    (plan, True),
    (status, False),
    (plot, False),
    (compare_routing, False),
    (sample, False),
    (evaluate, False),
    (export, False),
    (export_weights, False),
    (import_weights, False),
    (merge, False),
    (report, False),
    (presets, False),
    (check_router, False),
    (bench, True),
    (doctor, False),
)

app = typer.Typer(
    name="ecdit",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time of --help
)


@app.callback(help="Scaling studies of mixture-of-experts diffusion transformers.")
def about(version: ShowVersion = False) -> None:
    """Holds the options of `ecdit` itself, which stand before the command."""


for _command, _takes_overrides in COMMANDS:
    app.command(context_settings={"ignore_unknown_options": _takes_overrides})(with_plugins(_command))
app.add_typer(data, name="data")


def run(arguments: Sequence[str]) -> int:
    """Runs `ecdit ARGUMENTS` and returns the exit code."""
    words = list(arguments)  # DeepSpeed's launcher puts --local_rank=N first; LOCAL_RANK has the same
    if words and words[0].startswith("--local_rank="):
        del words[0]
    words = plugins_last(words)
    if tuple(words[:1]) not in SHARED_COMMANDS and tuple(words[:2]) not in SHARED_COMMANDS:
        forget_ranks()
    os.environ["MPLBACKEND"] = "agg"  # figures are files; an unknown backend in the environment would end the import
    try:
        command = typer.main.get_command(app)
        _refuse_unknown_options(command, words)
        code = command.main(args=words or ["--help"], prog_name="ecdit", standalone_mode=False)
    except UnwritableOutputError as error:
        error.say()
        return error.exit_code
    except EcditError as error:
        print_error(str(error))
        return error.exit_code
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        short = out_of_memory(error) or _name_too_long(error)
        if short is None:
            raise
        print_error(str(short))
        return short.exit_code
    except typer.TyperException as error:
        print_error(_usage_line(error))
        return error.exit_code
    if code == INTERRUPTED:
        talk().print("interrupted", highlight=False)
    return int(code or 0)


def _refuse_unknown_options(command: Any, words: Sequence[str]) -> None:
    """Raises `ConfigError` for an option that a command does not have, where words of settings would hide it.

    W&B writes a setting as `--KEY=VALUE`, which is one.
    """
    name = words[0] if words else ""
    if name not in {each.__name__.replace("_", "-") for each, takes_overrides in COMMANDS if takes_overrides}:
        return
    options = {option for each in command.commands[name].params for option in each.opts}
    known = {"--help", *(option for option in options if option.startswith("--"))}
    for word in words[1:]:
        if word.startswith("--") and "=" not in word and word not in known:
            other = {"--out": "--run-dir", "--run-dir": "--out"}.get(word)
            hint = f"The folder is {other} here." if other in known else did_you_mean(word, known)
            raise ConfigError(f"'{shortened(printable(word), 80)}' is not an option of ecdit {name}.", hint)


def _name_too_long(error: Exception) -> EcditError | None:
    """Returns an error in one line where a path is longer than the file system allows, else None.

    This can happen to any command, most easily because the name of a run holds many settings.
    """
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    return EcditError(f"{error.filename}: the name is too long for the file system.", "Choose a shorter one.")


def _usage_line(error: typer.TyperException) -> str:
    """Returns the message of a usage error with the refused value, which typer leaves out."""
    from pydantic import ValidationError

    message = error.format_message().replace("Value error, ", "")  # pydantic's words for the class of an exception
    if not isinstance(error.__cause__, ValidationError):
        return message
    value = shortened(printable(str(error.__cause__.errors(include_url=False, include_context=False)[0]["input"])), 80)
    return message if repr(value) in message else f"{message.rstrip('.')}, not {value}."


def main() -> None:
    """Runs the command line; this is the entry point of the console script."""
    os.environ["PYTHONSAFEPATH"] = "1"  # processes started here import nothing from the working folder
    wait_briefly()
    guard_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()  # a full disk may show only now
    except UnwritableOutputError as error:
        error.say()
        code = code or error.exit_code
    sys.exit(code)
