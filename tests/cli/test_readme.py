"""What the README tells a user to type exists and is understood."""

import re
from pathlib import Path

import pytest

from ecdit_cli.app import COMMANDS, run
from experiments.config.overrides import known_settings
from sweeps.folder import SweepFolder
from sweeps.planner import make_plan
from sweeps.spec import load_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
PLANNABLE = [line.split()[1:] for line in LINES if re.match(r"ecdit (train|sweep) ", line)]


def test_there_is_something_to_test():
    assert len(PLANNABLE) >= 3


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Where the files lie that the README speaks of: a cluster file, and a sweep that was planned."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text("time: 1:00:00\n")
    SweepFolder(tmp_path / "out" / "scaling").write_plan(make_plan(load_spec("scaling")))


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("arguments", PLANNABLE, ids=" ".join)
def test_its_commands_can_be_planned(arguments, capsys, request):
    for path in (each.removeprefix("data.path=") for each in arguments if each.startswith("data.path=")):
        Path(path).symlink_to(request.getfixturevalue("latent_set"))
    dry = ["--dry-run"] + (["--no-calibration"] if arguments[0] == "sweep" else [])
    assert run([*arguments, *(option for option in dry if option not in arguments)]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_its_make_targets_exist(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_it_names_every_command():
    documented = set(re.findall(r"`ecdit ([a-z-]+)", README))
    assert documented >= {command.__name__.replace("_", "-") for command, _ in COMMANDS}


def test_the_settings_in_its_table_exist():
    rows = re.findall(r"^\| (`[a-z_]+\.[a-z_`, .]+) \|", README, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_.]+)`", row)}
    assert named
    assert named <= set(known_settings())


def test_its_figures_are_there():
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert figures
    assert all((ROOT / figure).is_file() for figure in figures)
