"""`ecdit bench`: each measure has its numbers, and a mistake its line. How large they are is not for a test."""

from __future__ import annotations

import json

import pytest

from ecdit_cli._startup import LIMIT_SECONDS
from ecdit_cli.app import run

SMALL = ("model=nano", "model.width=32", "model.num_layers=2", "train.batch_images=8")


def rows_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, float]]:
    assert run(["bench", *arguments, "--json"]) == 0
    rows: list[dict[str, float]] = json.loads(capsys.readouterr().out)
    return rows


def test_train_has_the_shares_of_every_router(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(["train", *SMALL, "--steps", "2"], capsys)
    assert [row["routing"] for row in rows] == ["dense", "expert_choice", "token_choice"]
    for row in rows:
        assert 0 < row["compute_share"] < 1
        assert row["forward_seconds"] + row["backward_seconds"] + row["optimizer_seconds"] > 0


def test_data_stands_beside_training(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows_of(["data", *SMALL, "--steps", "2"], capsys)
    assert row["ratio"] == pytest.approx(row["loader_images_per_second"] / row["training_images_per_second"])


@pytest.mark.slow
def test_cli_times_every_command_it_promises_something_of(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(["cli", *SMALL, "--rounds", "1"], capsys)
    assert {row["measure"]: row["limit_seconds"] for row in rows} == LIMIT_SECONDS
    assert all(row["seconds"] > 0 for row in rows)


def test_a_person_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "train", *SMALL, "--steps", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "share of the three" in head
    assert len(rows) == 3


def test_an_unknown_measure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "trian"]) == 2
    assert capsys.readouterr().err == "error: ecdit bench 'trian' does not exist. Did you mean 'train'?\n"
