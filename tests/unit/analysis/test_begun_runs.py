"""Runs that began from the weights of another one: what those cost counts wherever images or FLOPs are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.arm_columns import columns_of
from analysis.arm_table import arm_table
from analysis.claims import arm_pairs
from analysis.compare import ARM_COLUMNS, compare
from analysis.curves import training_curves, validation_curves
from analysis.executed_flops import COUNTED_BEFORE, train_flops
from analysis.figures.registry import FIGURES, find_figure
from analysis.laws.forms import CHINCHILLA
from analysis.laws.observations import Observations
from analysis.load_records import Records, load_records
from analysis.report import laws as laws_of_reports
from analysis.report.run_rows import columns_with_scores, run_rows
from analysis.run_table import run_table
from experiments.config.budget import budget
from experiments.config.schema import RunConfig
from experiments.records.record_types import ParentRecord

BEFORE = 3200
SCRATCH = 9600


def config_of(router: str, **train: Any) -> dict[str, Any]:
    return {"model": {"name": "nano"}, "routing": {"name": router}, "train": train, "eval": {"every_images": 320}}


def train_cost(router: str, **model: Any) -> int:
    settings = config_of(router) | {"model": {"name": "nano", **model}}
    return budget(RunConfig.model_validate(settings)).train_flops_per_image


OWN = round((SCRATCH - BEFORE * train_cost("dense") / train_cost("expert_choice")) / 320) * 320
"""The images of an upcycled run which, with its parent, spends what one from scratch does, to a few percent."""


@pytest.fixture
def folder(tmp_path: Path, write_run: Callable[..., Any]) -> Path:
    """Writes dense and sparse runs from scratch, and runs upcycled from a dense one, of two seeds each."""
    for seed in (0, 1):
        for router in ("dense", "expert_choice"):
            settings = {**config_of(router, images=SCRATCH), "seed": seed}
            write_run(tmp_path / f"{router}-{seed}", settings, lambda n: 1 / (n + 1000))
        start = {"init_from": f"/elsewhere/{seed}", "init_fingerprint": f"{seed:016x}"}
        parent = ParentRecord(
            name=f"parent-{seed}", config_id="0" * 10, images=BEFORE, path=start["init_from"], router="dense",
            weights="ema", fingerprint=start["init_fingerprint"], train_flops=float(BEFORE * train_cost("dense")),
        )  # fmt: skip
        settings = {**config_of("expert_choice", images=OWN, **start), "seed": seed}
        write_run(tmp_path / f"upcycled-{seed}", settings, lambda n: 1 / (n + 4000), parent=parent)
    return tmp_path


@pytest.fixture
def records(folder: Path) -> Records:
    return load_records([folder])


UPCYCLED = f"Expert choice (from dense of {BEFORE:,} images)"


def upcycled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["arm"] == UPCYCLED]


def test_a_run_of_equal_compute_in_all_is_an_arm_beside_those_from_scratch(records: Records) -> None:
    table = run_table(records)
    assert table["setup"].nunique() == 1
    assert set(table["arm"]) == {"Dense (same depth)", "Expert choice (from scratch)", UPCYCLED}
    assert len(upcycled(table)) == 2


def test_an_upcycled_arm_is_compared_with_the_same_arm_from_scratch(records: Records) -> None:
    pairs = list(arm_pairs(run_table(records)))
    assert pairs[-1] == (UPCYCLED, "Expert choice (from scratch)")
    assert [reference for _, reference in pairs] == [*["Dense (same depth)"] * 2, "Expert choice (from scratch)"]


def test_a_run_of_other_compute_is_a_setup_of_its_own(folder: Path, write_run: Callable[..., Any]) -> None:
    settings = {**config_of("dense", images=SCRATCH // 2), "seed": 0}
    parent = ParentRecord(
        name="parent", config_id="0" * 10, images=BEFORE, router="dense", fingerprint="f" * 16, train_flops=1.0
    )
    settings["train"] |= {"init_from": "/elsewhere", "init_fingerprint": "f" * 16}
    write_run(folder / "dense-on", settings, lambda n: 1 / (n + 2000), parent=parent)
    table = run_table(load_records([folder]))
    assert table["setup"].nunique() == 2
    other = table[table["run"].str.endswith("dense-on")].iloc[0]
    assert other["arm"].endswith(f"from dense of {BEFORE:,} images")
    assert other["arm_kind"] == "dense_other"


@pytest.mark.parametrize("router", ["dense", "expert_choice"])
def test_a_run_that_began_from_imported_weights_is_no_run_from_scratch(
    router: str, folder: Path, write_run: Callable[..., Any]
) -> None:
    """They have seen no images here and cost nothing here, but they were trained."""
    settings = {**config_of(router, images=SCRATCH), "seed": 0}
    parent = ParentRecord(
        name="imported", config_id="0" * 10, images=0, router="dense", fingerprint="f" * 16, train_flops=0.0
    )
    settings["train"] |= {"init_from": "/elsewhere", "init_fingerprint": "f" * 16}
    write_run(folder / "on", settings, lambda n: 1 / (n + 2000), parent=parent)
    table = run_table(load_records([folder]))
    on = table[table["run"].str.endswith("/on")].iloc[0]
    assert "from dense trained elsewhere" in on["arm"]
    assert on["arm_kind"] == ("dense_other" if router == "dense" else "sparse")
    assert table["setup"].nunique() == 1
    assert "Dense (same depth)" in set(table["arm"])


@pytest.mark.parametrize(("router", "parent_flops", "said"), [("expert_choice", 1e13, "more"), ("dense", 1e13, "more")])
def test_a_run_that_costs_more_in_all_than_dense_beside_it_says_so(
    router: str, parent_flops: float, said: str, folder: Path, write_run: Callable[..., Any]
) -> None:
    """Its own training is as long as that from scratch, and that of its parent comes on top."""
    settings = {**config_of(router, images=SCRATCH), "seed": 0}
    parent = ParentRecord(
        name="parent", config_id="0" * 10, images=BEFORE, router="dense", fingerprint="f" * 16, train_flops=parent_flops
    )
    settings["train"] |= {"init_from": "/elsewhere", "init_fingerprint": "f" * 16}
    write_run(folder / "longer", settings, lambda n: 1 / (n + 2000), parent=parent)
    table = run_table(load_records([folder]))
    longer = table[table["run"].str.endswith("longer")].iloc[0]
    assert table["setup"].nunique() == 1
    assert longer["arm"].endswith(f", {said} compute than dense")
    assert not table[table["flops_before"] == 0]["arm"].str.contains("compute").any()


def write_narrow(folder: Path, write_run: Callable[..., Any], spent: float) -> pd.Series[Any]:
    """Writes a run of two layers of narrow experts that began from another one and spent so much in all."""
    model = {"name": "nano", "num_layers": 2, "ffn_factor": 2.0}
    own = float(SCRATCH * train_cost("expert_choice", num_layers=2, ffn_factor=2.0))
    parent = ParentRecord(
        name="parent", config_id="0" * 10, images=BEFORE, router="dense", fingerprint="f" * 16, train_flops=spent - own
    )
    start = {"init_from": "/elsewhere", "init_fingerprint": "f" * 16}
    settings = {**config_of("expert_choice", images=SCRATCH, **start), "model": model, "seed": 0}
    write_run(folder / "narrow", settings, lambda n: 1 / (n + 2000), parent=parent)
    table = run_table(load_records([folder]))
    assert table["setup"].nunique() == 1
    return table[table["run"].str.endswith("narrow")].iloc[0]


def test_compute_is_compared_with_that_of_dense_of_the_same_depth(
    tmp_path: Path, write_run: Callable[..., Any]
) -> None:
    """A deeper dense model stands first in the folder, and none is as narrow as the run."""
    for name, router, depth in (("a", "dense", 4), ("b", "dense", 2), ("c", "expert_choice", 4)):
        settings = {**config_of(router, images=SCRATCH), "model": {"name": "nano", "num_layers": depth}, "seed": 0}
        write_run(tmp_path / name, settings, lambda n: 1 / (n + 1000))
    spent = 1.2 * SCRATCH * train_cost("dense", num_layers=2)
    assert spent < SCRATCH * train_cost("dense", num_layers=4)
    assert write_narrow(tmp_path, write_run, spent)["arm"].endswith(", more compute than dense")


def test_nothing_is_said_of_compute_without_dense_of_the_same_depth(
    folder: Path, write_run: Callable[..., Any]
) -> None:
    assert "compute" not in write_narrow(folder, write_run, 1e13)["arm"]


def test_curves_begin_where_the_parent_ended(records: Records) -> None:
    table = run_table(records)
    before = float(BEFORE * train_cost("dense"))
    for curves in (validation_curves(records, table), training_curves(records, table)):
        first = upcycled(curves).drop_duplicates("run")
        assert (first["images_seen"] == BEFORE + 320).all()
        assert first["flops"].to_list() == pytest.approx([before + 320 * train_cost("expert_choice")] * 2)
        dense = curves[curves["arm"] == "Dense (same depth)"].drop_duplicates("run")
        assert (dense["images_seen"] == 320).all()


def test_the_whole_training_of_a_run_includes_its_parents(records: Records) -> None:
    table = run_table(records)
    expected = BEFORE * train_cost("dense") + OWN * train_cost("expert_choice")
    assert train_flops(upcycled(table)).to_list() == [expected] * 2
    rows = run_rows(records, table)
    assert upcycled(rows)["train_flops"].to_list() == [expected] * 2
    assert "flops_before" in [column.key for column in columns_with_scores(rows)]


def test_a_law_takes_the_images_of_parents_beside_their_compute(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: dict[str, Observations] = {}

    def remember(form: object, family: str, observations: Observations, num_resamples: int) -> None:
        if form is CHINCHILLA:
            fitted[family] = observations

    monkeypatch.setattr(laws_of_reports, "_law", remember)
    laws_of_reports.laws(run_rows(records, run_table(records)))
    assert fitted[UPCYCLED].values["D"].tolist() == [BEFORE + OWN] * 2
    expected = BEFORE * train_cost("dense") + OWN * train_cost("expert_choice")
    assert fitted[UPCYCLED].values["C"].tolist() == [expected] * 2
    assert fitted["Dense (same depth)"].values["D"].tolist() == [SCRATCH] * 2


def test_the_table_of_arms_shows_both(records: Records) -> None:
    arms = arm_table(records, run_table(records))
    row = upcycled(arms).iloc[0]
    assert row["flops_before"] == BEFORE * train_cost("dense")
    assert row["train_flops"] == pytest.approx(SCRATCH * train_cost("expert_choice"), rel=0.03)
    assert {"train_flops", "flops_before"} <= {column.key for column in columns_of(arms, ARM_COLUMNS)}
    scratch = arms[arms["arm"] != UPCYCLED]
    assert not {"train_flops", "flops_before"} & {column.key for column in columns_of(scratch, ARM_COLUMNS)}


def test_tables_and_figures_by_compute_say_that_parents_count(records: Records) -> None:
    assert COUNTED_BEFORE in compare(records).notes
    drawing = find_figure("loss-convergence").drawing(records, run_table(records))
    assert any(COUNTED_BEFORE in text.get_text().replace("\n", " ") for text in drawing.figure.texts)
    by_compute = {name for name, entry in FIGURES.items() if entry.by_compute}
    assert by_compute == {
        "loss-convergence", "routing", "comparison", "scaling-law", "isoflop", "curve-collapse",
        "quality-over-training",
    }  # fmt: skip
