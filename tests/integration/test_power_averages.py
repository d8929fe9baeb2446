"""Power-function averages do not depend on the layout, and go on from a checkpoint at any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.records.run_folder import RunDir
from experiments.training.checkpoint import load_newest
from experiments.training.checkpoint_contents import average_keys, tensor_key
from experiments.training.engine import process_group
from tests.integration.layout_worker import Task, perform
from tests.integration.test_expert_parallel import STEPS, launch, layout

pytestmark = [pytest.mark.slow, pytest.mark.multi]

POWER = ["routing=expert_choice", "train.ema=power"]
LAYOUTS = [(1, 0), (1, 1), (1, 3), (2, 1), (2, 2)]
"""(expert-parallel size, ZeRO stage) on two processes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("averages")


@pytest.fixture(scope="module")
def one_process(folder: Path) -> Iterator[None]:
    with process_group(folder / "log.txt"):
        yield


@pytest.fixture(scope="module")
def saved(one_process: None, folder: Path) -> Path:
    """One process, halfway and at the end; then every layout on two, from the start and from halfway."""
    perform(Task(POWER, STEPS, save=str(folder / "halfway")), world=1)
    perform(Task(POWER, 2 * STEPS, save=str(folder / "straight")), world=1)
    tasks = {}
    for pair in LAYOUTS:
        settings = [*POWER, *layout(*pair)]
        tasks[f"begun {pair}"] = Task(settings, STEPS, save=str(folder / f"begun {pair}"))
        tasks[f"on {pair}"] = Task(settings, STEPS, STEPS, str(folder / "halfway"), str(folder / f"on {pair}"))
    launch(tasks, 2, folder)
    return folder


def averages(folder: Path) -> dict[str, Tensor]:
    found = load_newest(RunDir(folder), "layouts", pytest.fail)
    assert found is not None
    assert found.ema_widths == (0.05, 0.10)
    whole = {name: torch.Size(shape).numel() for name, shape in found.shapes.items()}
    keys = average_keys(found.ema_widths)
    return {
        tensor_key(name, key): found.read("ema", name, 0, size, key) for name, size in whole.items() for key in keys
    }


@pytest.mark.parametrize("pair", LAYOUTS, ids=str)
@pytest.mark.parametrize(("kind", "reference"), [("begun", "halfway"), ("on", "straight")])
def test_averages_are_those_of_one_process(kind: str, reference: str, pair: tuple[int, int], saved: Path) -> None:
    ours, theirs = averages(saved / f"{kind} {pair}"), averages(saved / reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("pair", LAYOUTS, ids=str)
def test_one_process_goes_on_with_the_averages_of_two(pair: tuple[int, int], saved: Path) -> None:
    target = saved / f"back {pair}"
    perform(Task(POWER, STEPS, STEPS, str(saved / f"begun {pair}"), str(target)), world=1)
    theirs = averages(saved / "straight")
    for name, tensor in averages(target).items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-4)
