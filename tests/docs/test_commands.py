"""Every command that a page tells a user to type is run, dry-run, or at least understood by the real command line."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from ecdit_cli.app import app, run
from experiments.config.designs import load_designed
from experiments.config.overrides import expand
from experiments.errors import EcditError
from experiments.plugins.loading import load_plugins
from sweeps.folder import SweepFolder
from sweeps.planner import make_plan
from sweeps.spec import load_spec
from tests.docs.pages import ALL_BLOCKS, COMMAND_BLOCKS, DOCS, ROOT, Block
from tests.integration.test_added_data_set import stripes
from tests.training_runs import random_run_folder
from tests.unit.plugins.conftest import no_plugins

__all__ = ["no_plugins", "stripes"]

NEEDS_WEIGHTS = ("sample", "evaluate", "export-weights")
READS_RUNS = ("status", "plot", "compare-routing", "report", "export")
SLOW = (*NEEDS_WEIGHTS, "report")
ADDED = {
    "train": ("--dry-run",),
    "sweep": ("--dry-run", "--no-calibration"),
    "sample": ("--steps=1",),
    "evaluate": ("--steps=1", "--images=8", "--batch-images=8", "--rounds=1"),
    "bench": ("--seeds=1",),
}
"""Options that keep a command short. Training and sweeps are planned only: other tests train."""
SETS = {
    "out/photos": "latent_set", "out/emoji": "latent_set", "out/birds": "labelled_set",
    "out/emoji-classes": "labelled_set",
}  # fmt: skip
"""The prepared sets of the pages, and those that stand for them: what `data.path` alone says follows from either."""
READ: set[tuple[str, ...]] = set()
"""Commands that have read runs which were provided: on another page the same words would read the same runs."""
LEFT_OUT = ("--watch",)
"""Options with which a command would not end here."""
LAUNCHERS = ("torchrun", "srun", "mpirun", "mpiexec", "deepspeed")
COUNTS_OF_PROCESSES = ("--nnodes", "--nproc-per-node", "--nodes", "--ntasks-per-node", "-n")
OPTIONAL_DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def _is_slow(block: Block) -> bool:
    """Says whether a block takes long; of those that only draw every figure, that of the README does not count."""
    ours = [words for words in block.commands() if words[0] == "ecdit"]
    draws = any(words[1:3] == ["plot", "all"] for words in ours) and block.page.name != "README.md"
    needs_set = any(word.startswith("data.path=") for words in ours for word in words)
    return block.mode == "run" and (draws or needs_set or any(words[1] in SLOW for words in ours))


STUDY = [block for block in COMMAND_BLOCKS if block.page.name == "first-study.md"]
"""These are also run in their order and for real, so that those of them that take long are not run here too."""
TESTED = [
    pytest.param(block, id=str(block), marks=[pytest.mark.slow] if _is_slow(block) else [])
    for block in COMMAND_BLOCKS
    if not (block in STUDY and _is_slow(block))
]


def test_there_is_something_to_test() -> None:
    assert len(COMMAND_BLOCKS) >= 20
    assert sum(block.mode == "run" for block in COMMAND_BLOCKS) > len(COMMAND_BLOCKS) / 2


@pytest.mark.parametrize("block", TESTED)
def test_its_commands_do_what_the_page_says(
    block: Block,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_run: Callable[..., Any],
    request: pytest.FixtureRequest,
    no_account: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_files_of_pages(tmp_path)
    if block.page.name == "add-a-data-set.md":
        request.getfixturevalue("stripes")
    needs_weights = any(words[:1] == ["ecdit"] and words[1] in NEEDS_WEIGHTS for words in block.commands())
    for words in block.commands():
        arguments = _after_launcher(words, block)
        if arguments is None:
            _check_other_command(words)
            continue
        for path, fixture in SETS.items():
            if f"data.path={path}" in arguments:
                (tmp_path / "out").mkdir(exist_ok=True)
                (tmp_path / path).symlink_to(request.getfixturevalue(fixture))
        _provide_parents(arguments)
        if block.mode == "parse":
            _check_understood(arguments)
            continue
        _provide(arguments, needs_weights, write_run)
        _check_understood(arguments)
        reads = arguments[0] in READS_RUNS and not needs_weights
        if reads and tuple(arguments) in READ:
            continue
        kept = [word for word in arguments if word not in LEFT_OUT]
        assert run([*kept, *(each for each in ADDED.get(kept[0], ()) if each not in kept)]) == 0
        READ.update([tuple(arguments)] if reads else [])


@pytest.mark.parametrize("words", [["train", "routing.experts=4"], ["plot", "--colour"], ["data", "prepare", "photos"]])
def test_words_that_the_command_line_does_not_know_are_found(words: list[str]) -> None:
    with pytest.raises((typer.TyperException, EcditError)):
        _check_understood(words)


def _write_files_of_pages(folder: Path) -> None:
    for block in ALL_BLOCKS:
        if block.title:
            (folder / block.title).write_text(block.text)
    for example in (DOCS / "how-to" / "examples").glob("*.py"):
        (folder / example.name).write_text(example.read_text())


def _after_launcher(words: Sequence[str], block: Block) -> list[str] | None:
    """The words after `ecdit`, also of a command that a launcher starts; None of any other command."""
    if words[0] == "ecdit":
        return list(words[1:])
    if words[0] not in LAUNCHERS:
        return None
    assert block.mode != "run", f"{block} starts a launcher: mark it with dry-run and say why"
    _check_launcher(words)
    entry = next(i for i, word in enumerate(words) if word in ("ecdit", "ecdit_cli"))
    world = math.prod(int(words[i + 1]) for i, word in enumerate(words[:entry]) if word in COUNTS_OF_PROCESSES)
    arguments = list(words[entry + 1 :])
    return [*arguments, f"parallel.world={world}"] if arguments[0] == "train" else arguments


def _check_launcher(words: Sequence[str]) -> None:
    """Has the options of the launchers that are installed parsed by themselves."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        assert get_args_parser().parse_args(list(words[1:])).training_script == "ecdit_cli"
    if words[0] == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        assert parse_args(list(words[1:])).user_script == "ecdit_cli"


def _check_other_command(words: Sequence[str]) -> None:
    """Checks a command that is not ours: its target, its file or its extra must exist."""
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE) for word in targets)
    elif words[:2] == ["pip", "install"]:
        extras = [found[1] for word in words if (found := re.search(r"ecdit\[(\w+)\]", word))]
        assert set(extras) <= set(OPTIONAL_DEPENDENCIES)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "source":
        assert words[1:] == [".venv/bin/activate"]
    else:
        raise AssertionError(f"{' '.join(words)}: say here how this command is tested")


def _check_understood(words: Sequence[str]) -> None:
    """Has the real command line parse `words`, and the settings among them resolved and checked."""
    group = typer.main.get_command(app)
    command, arguments = group.commands[words[0]], list(words[1:])  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context(words[0], arguments)
    load_plugins(context.params.get("plugin_files", ()))
    settings = context.params.get("overrides")
    if words[0] == "train":
        load_designed(settings)
    elif settings:
        expand(settings)


def _provide(words: Sequence[str], needs_weights: bool, write_run: Callable[..., Any]) -> None:
    """Makes the runs and sweeps that a command reads, where no earlier command of the block has made them."""
    if words[0] == "sweep" and words[1].startswith("out/"):
        SweepFolder(Path(words[1])).write_plan(make_plan(load_spec(Path(words[1]).name)))
    if words[0] not in (*NEEDS_WEIGHTS, *READS_RUNS):
        return
    named = [
        Path(word) for i, word in enumerate(words) if word.startswith("out/") and not words[i - 1].startswith("--")
    ]
    for path in (named[:1] if words[0] == "export-weights" else named) or [Path("out/demo")]:
        folder = path.parent if path.parent.name == "runs" else path
        if not path.exists() and needs_weights:
            random_run_folder(path if path.parent.name == "runs" else folder / "runs" / "first", "data.image_size=16")
        elif not path.exists():
            _write_runs(path, write_run)


def _provide_parents(words: Sequence[str]) -> None:
    """Makes the dense runs whose weights a command begins from."""
    for word in words:
        setting, _, path = word.partition("=")
        if setting == "train.init_from" and not Path(path).exists():
            preset = next((each for each in words if each.startswith("model=")), "model=nano")
            depth = load_designed([preset, "routing=dense"]).config.model.num_layers
            random_run_folder(Path(path), preset, "routing=dense", f"model.num_layers={depth}")


def _write_runs(path: Path, write_run: Callable[..., Any]) -> None:
    """Three routers with three seeds, or the one run that is named."""
    settings: dict[str, Any] = {"train": {"images": 3200}, "eval": {"every_images": 800}}
    if path.parent.name == "runs":
        write_run(path, settings, lambda images: 1.0 - 1e-4 * images)
        return
    for i, router in enumerate(("dense", "token_choice", "expert_choice")):
        for seed in range(3):
            of_run = {**settings, "routing": {"name": router}, "seed": seed}
            loss = _curve(1.0 - 0.02 * i + 0.003 * seed)
            write_run(path / "runs" / f"{router}-{seed}", of_run, loss, inference_seconds=0.1 + 0.01 * i)


def _curve(start: float) -> Callable[[int], float]:
    return lambda images: start - 1e-4 * images


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_study_works_from_its_spec_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the page in their order, on the file that it shows, for real; only the trainings are shorter."""
    monkeypatch.chdir(tmp_path)
    _write_files_of_pages(tmp_path)
    short = [
        "train.images=320", "eval.every_images=80", "eval.images=32", "eval.sample_images=0", "eval.sample_steps=1",
        "wandb.mode=disabled",
    ]  # fmt: skip
    for words in (words for block in STUDY for words in block.commands()):
        if words[1] == "sweep":  # which forks its runs from a process without torch
            done = subprocess.run([sys.executable, "-m", "ecdit_cli", *words[1:], *short], check=False)
            assert done.returncode == 0
        else:
            assert run([*words[1:], *(["--images=8"] if words[1] == "evaluate" else [])]) == 0
    assert (tmp_path / "out/first/report/index.html").is_file()
