"""`ecdit presets`: the table, beside what the papers print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ecdit_cli.app import run
from ecdit_cli.presets import COLUMNS
from experiments.config.presets import PRESETS

KEYS = {
    "preset",
    "num_experts",
    "width",
    "num_layers",
    "num_sparse_layers",
    "params_total",
    "params_active",
    "params_expert_increment",
    "flops_per_image",
}
PAPER_KEYS = {"paper_params_total", "paper_params_active"}


@pytest.fixture
def rows(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, int], dict[str, Any]]:
    assert run(["presets", "--json"]) == 0
    return {(row["preset"], row["num_experts"]): row for row in json.loads(capsys.readouterr().out)}


def test_json_has_one_object_for_each_preset_and_expert_count(rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert list(rows) == [(preset, num_experts) for preset in PRESETS for num_experts in (0, 8, 16, 32, 64)]
    assert all(set(row) - PAPER_KEYS == KEYS for row in rows.values())


def test_printed_counts_stand_only_where_a_paper_prints_them(rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert {key for key, row in rows.items() if "paper_params_total" in row} == {
        *((preset, num_experts) for preset in ("XL", "XXL", "3XL") for num_experts in (0, 32)),
        *(("M", 0), ("M", 64), ("dit-moe-S", 8), ("dit-moe-XL", 8), ("dit-moe-G", 16)),
        *((f"dit-{size}-2", 0) for size in ("s", "b", "l", "xl")),
        *((f"sd3-{depth}", 0) for depth in (24, 38)),
    }
    assert rows["XL", 32]["paper_params_active"] == 1_620_000_000
    assert "paper_params_active" not in rows["XL", 0]


def test_the_increment_of_m_is_over_the_dense_model_of_its_depth(rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert (rows["M", 0]["num_layers"], rows["M", 64]["num_layers"], rows["M", 64]["num_sparse_layers"]) == (46, 38, 19)
    assert rows["M", 64]["params_expert_increment"] == 19 * (63 * 8 * 3072**2 + 64 * 3072)


def test_dense_has_no_increment_and_activates_everything(rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    dense = [rows[preset, 0] for preset in PRESETS]
    assert all(row["params_expert_increment"] == 0 and row["num_sparse_layers"] == 0 for row in dense)
    assert all(row["params_active"] == row["params_total"] for row in dense)


def test_a_pipe_gets_aligned_text_and_the_differences_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "XL"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [word for column in COLUMNS for word in column.title.split()]
    assert lines[4].endswith("5.14B    681M        4.61B  328 GFLOP        6.08B         1.62B")
    assert lines[5].endswith("GFLOP")  # nothing printed for 64 experts: an empty cell, not a zero
    assert "Ours beside EC-DIT:" in lines
    assert any("frozen text encoder (about 0.67B)" in line for line in lines)
    assert any("5.18B activated, its own formula gives 5.39B" in line for line in lines)


def test_a_person_gets_a_drawn_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["presets", "XL"]) == 0
    assert "────" in capsys.readouterr().out


def test_presets_without_a_paper_have_no_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "nano"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
