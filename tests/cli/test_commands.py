"""The command line as a whole: what it offers, what it imports, how a run of it ends.

The list of commands and options is frozen in `tests/goldens/cli.txt`. After a change that is meant, run
`python tests/cli/test_commands.py` and say in the changelog what changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from ecdit_cli.app import app, run
from experiments.config.sampler_rows import SAMPLERS

GOLDEN = Path(__file__).parents[1] / "goldens" / "cli.txt"
HEAVY = ("torch", "deepspeed", "wandb", "pandas", "matplotlib", "scipy")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return dict(group.commands)


def offered() -> str:
    """One line for each command: its arguments and options."""
    lines = []
    single = {name: command for name, command in commands().items() if not isinstance(command, TyperGroup)}
    inside = {
        f"{group} {name}": command
        for group, commands_of in commands().items()
        if isinstance(commands_of, TyperGroup)
        for name, command in commands_of.commands.items()
    }
    for name, command in (single | inside).items():
        words = [p.opts[0] if p.param_type_name == "option" else str(p.metavar) for p in command.params]
        lines.append(" ".join(["ecdit", name, *words]))
    return "\n".join(lines) + "\n"


def test_the_command_line_is_as_frozen() -> None:
    assert offered() == GOLDEN.read_text()


def test_help_needs_neither_torch_nor_pydantic() -> None:
    heavy = (*HEAVY, "pydantic")
    done = python(
        f"import sys; from ecdit_cli.app import run; code = run(['--help']);"
        f"assert not set({heavy}) & set(sys.modules); sys.exit(code)"
    )
    assert done.returncode == 0, done.stderr
    assert "presets" in done.stdout


def test_help_of_every_command_needs_no_torch() -> None:
    names = list(commands())
    done = python(
        f"import sys; from ecdit_cli.app import run; codes = [run([name, '--help']) for name in {names}];"
        f"assert not set({HEAVY}) & set(sys.modules); assert not any(codes)"
    )
    assert done.returncode == 0, done.stderr


def test_no_arguments_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: ecdit" in capsys.readouterr().out


@pytest.mark.parametrize("start", [[sys.executable, "-m", "ecdit_cli"], [str(Path(sys.executable).with_name("ecdit"))]])
def test_the_module_and_the_script_are_the_same_command(start: list[str]) -> None:
    done = subprocess.run([*start, "presets", "nanno"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: model.name='nanno' is not a preset. Did you mean 'nano'?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preset"], "No such command 'preset'. Did you mean 'presets'?"),
        (["presets", "--jsn"], "No such option: --jsn (Possible options: --json)"),
        (["presets", "nanno"], "model.name='nanno' is not a preset. Did you mean 'nano'?"),
        (["train", "--out", "x"], "'--out' is not an option of ecdit train. The folder is --run-dir here."),
        (
            ["sweep", "quickstart", "--run-dir", "x"],
            "'--run-dir' is not an option of ecdit sweep. The folder is --out here.",
        ),
        (["train", "--dryrun"], "'--dryrun' is not an option of ecdit train. Did you mean '--dry-run'?"),
        (["sample", "x", "--sampler", "dpm++"], "--sampler 'dpm++' is not a sampler. Did you mean 'ddpm'?"),
        (
            ["evaluate", "x", "--sampler", "rk"],
            f"--sampler 'rk' is not a sampler. Choose from: {', '.join(sorted(SAMPLERS))}.",
        ),
        (["evaluate", "x", "--weights", "foo"], "Invalid value for '--weights': 'foo' is not one of 'raw', 'ema'."),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {message}\n"


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_every_sampler_of_the_registry_is_offered_with_a_word_about_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    words = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())
    for row in SAMPLERS.values():
        assert f"{row.name}, {row.about}" in words


def test_ctrl_c_is_one_line_and_exit_code_130() -> None:
    done = python(
        "import signal, sys; from ecdit_cli.app import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell starts us with it ignored
        "def press(event, arguments):\n"
        "    if event == 'import' and arguments[0] == 'experiments.config.presets':\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "sys.addaudithook(press)\n"
        "sys.exit(run(['presets']))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


if __name__ == "__main__":
    GOLDEN.write_text(offered())


VERSION_WITHOUT_TORCH = """
import sys
from ecdit_cli.app import run
code = run(["--version"])
assert not {"torch", "pandas"} & set(sys.modules)
sys.exit(code)
"""


def test_the_version_is_that_of_the_package_and_loads_no_torch() -> None:
    done = python(VERSION_WITHOUT_TORCH)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ecdit {version('ecdit')}\n"
