"""A few hundred generated settings, sweep files and damaged records at the real commands (`make fuzz`).

`FUZZ_SEED=7 FUZZ_CASES=1000 make fuzz` tries others, and more. A failure prints the command; the files that it was
given lie in the folder that pytest names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from experiments.config.schema import RunConfig
from experiments.records.record_types import RoutingRow
from tests.fuzz.commands import assert_well_behaved, run, tree
from tests.fuzz.hostile import damage, overrides, sweep_file

pytestmark = pytest.mark.fuzz

SEED = os.environ.get("FUZZ_SEED", "0")
CASES = int(os.environ.get("FUZZ_CASES", "300"))
NOT_COMPARABLE = "Name only the folders that belong together."
"""A damaged digit may leave a valid run of another validation set, which a comparison refuses by name."""
NUM_RUNS = 20
"""Damaged runs in one folder, beside three that are whole."""
READERS: tuple[tuple[str, ...], ...] = (
    ("status", "runs"),
    ("export", "runs", "--out", "out/table"),
    ("plot", "loss-convergence", "runs", "--out", "out/figures"),
    ("compare-routing", "runs", "--out", "out/tables"),
    ("report", "runs", "--out", "out/report"),
)
WITH_EVERY_RUN = ("status", "export")
"""Commands whose table has every run; the others list what they leave out."""


ROUTING = RoutingRow(
    images_seen=3200, layer=1, condition="mixed_t", load=[0.5, 0.5], entropy=0.9, load_entropy=1.0, dropped_share=0.1,
    experts_per_token=[0.1, 0.9],
)  # fmt: skip


def names_of_settings() -> list[str]:
    """Every setting of a run by its dotted name."""
    names = []
    for name, field in RunConfig.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        names += [f"{name}.{key}" for key in section] if section else [name]
    return names


def random_of(kind: str, case: int) -> Random:
    return Random(f"{SEED} {kind} {case}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a home and a working folder."""
    for name in ("home", "work/out"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("case", range(CASES // 2))
def test_settings(case: int, folder: Path) -> None:
    random = random_of("settings", case)
    command = random.choice((["train", "--dry-run", "--json"], ["train", "--dry-run"], ["plan"], ["plan", "--json"]))
    before = tree(folder / "work")
    assert_well_behaved(run([*command, *overrides(random, names_of_settings())], folder))
    assert tree(folder / "work") == before
    assert not tree(folder / "home")


@pytest.mark.parametrize("case", range(CASES // 3))
def test_sweep_files(case: int, folder: Path) -> None:
    random = random_of("sweep", case)
    (folder / "work/study.yaml").write_bytes(sweep_file(random))
    before = tree(folder / "work")
    words = ["sweep", "study.yaml", "--dry-run", "--no-calibration", *random.choice(((), ("--json",)))]
    assert_well_behaved(run(words, folder))
    assert tree(folder / "work") == before
    assert not tree(folder / "home")


@pytest.mark.parametrize("case", range(max(1, CASES // 6 // NUM_RUNS)))
def test_damaged_records(case: int, folder: Path, write_run: Callable[..., Any]) -> None:
    random = random_of("records", case)
    runs = folder / "work/runs"
    names = {}
    for i in range(NUM_RUNS + 3):
        settings = {
            "model": {"name": "nano"}, "routing": {"name": ("dense", "expert_choice")[i % 2]}, "seed": i,
            "train": {"images": 3200}, "eval": {"every_images": 800},
        }  # fmt: skip
        run_dir = write_run(runs / f"run-{i:02d}", settings, lambda n, i=i: 0.2 - 1e-5 * n + 1e-4 * i)
        run_dir.routing.write_text(ROUTING.model_dump_json() + "\n")
        names[f"run-{i:02d}"] = "whole" if i >= NUM_RUNS else ""
    for name in [name for name, state in names.items() if not state]:
        names[name] = damage(random, runs / name)
    before = {path: entry for path, entry in tree(folder / "work").items() if not path.startswith("out")}
    for words in READERS:
        ended = run(list(words), folder)
        assert_well_behaved(ended)
        assert ended.code == 0 or NOT_COMPARABLE in ended.stderr, ended
        shown = ended.stdout + ended.stderr
        if words[0] == "export":
            shown += (folder / "work/out/table.csv").read_text()
        whole = [name for name, state in names.items() if state == "whole"]
        assert all(name in shown for name in (names if words[0] in WITH_EVERY_RUN else [])), (names, ended)
        assert not any(f"{name}:" in ended.stderr for name in whole), ended
    after = {path: entry for path, entry in tree(folder / "work").items() if not path.startswith("out")}
    assert after == before
