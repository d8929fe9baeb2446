"""The model card: what it says comes from the records, what they lack is said to be missing, and nothing acts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from analysis.model_card import model_card
from experiments.config.metrics import FRECHET_FEATURES, sampled_metrics
from experiments.config.router_rows import ROWS
from experiments.evaluation.exchange.exported_weights import export_weights
from experiments.evaluation.exchange.imported_run import import_weights
from experiments.records.exported_record import read_exported
from experiments.records.record_types import EvalRow
from experiments.records.run_folder import RunDir
from tests.picture_sets import prepared_pictures
from tests.real_images import need_static_extra
from tests.training_runs import random_run_folder
from tests.unit.evaluation.exchange.public_networks import HEADS, public_state

SEEN = 640


def card_of(run: RunDir, out: Path, weights: Any = "ema", **options: Any) -> str:
    export_weights(
        run, out, weights, "fp32", 2**30, pytest.fail, card=lambda exported: model_card(exported, run), **options
    )  # fmt: skip
    return (out / "README.md").read_text()


def measure(run: RunDir, metric: str, value: float, **fields: Any) -> None:
    usual = {"images_seen": SEEN, "num_samples": 256, "seed": 3, "weights": "ema"}
    row = EvalRow(metric=metric, value=value, **{**usual, **fields})
    with run.evals.open("a") as file:
        file.write(row.model_dump_json(exclude_none=True) + "\n")


def cells(card: str, first: str) -> list[list[str]]:
    """The cells of every table row that begins with `first`."""
    lines = [line for line in card.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return random_run_folder(tmp_path / "run", "routing=expert_choice", images_seen=SEEN)


def test_the_header_is_what_the_hub_reads(run: RunDir, tmp_path: Path) -> None:
    _, header, _ = card_of(run, tmp_path / "out").split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "ecdit",
        "pipeline_tag": "text-to-image",
        "tags": ["diffusion", "mixture-of-experts", "expert_choice"],
    }


def test_its_numbers_are_those_of_the_record(run: RunDir, tmp_path: Path) -> None:
    card, record = card_of(run, tmp_path / "out"), run.read_run()
    assert cells(card, "parameters")[0][1].startswith(f"{record.params_total:,} ")
    assert cells(card, "activated parameters")[0][1].startswith(f"{record.params_active:,} ")
    assert cells(card, "images seen")[0][1].startswith(f"{SEEN:,} in batches of ")
    assert cells(card, "config id")[0][1] == record.config_id
    assert cells(card, "weights") == [["weights", "moving average (EMA), fp32"]]


def test_metrics_are_those_of_the_exported_weights(run: RunDir, tmp_path: Path) -> None:
    measure(run, "shapes-geneval", 0.5, interval_low=0.4, interval_high=0.6, settings={"guidance": 2.0})
    measure(run, "shapes-geneval", 0.25, interval_low=0.2, interval_high=0.3, settings={"guidance": 2.0})  # again
    measure(run, "shapes-geneval", 0.7, weights="raw")
    measure(run, "shapes-geneval", 0.8, images_seen=SEEN // 2)
    measure(run, "shapes-geneval", 0.9, settings={"ema_width": 0.1})
    measure(run, "val_loss", 0.125)
    card = card_of(run, tmp_path / "out")
    assert cells(card, "shapes-geneval") == [["shapes-geneval", "25.0%", "20.0% to 30.0%", "256", "seed=3, guidance=2"]]
    assert cells(card, r"val\_loss") == [[r"val\_loss", "0.125", "not recorded", "256", "seed=3"]]
    missing = re.search(r"^Not measured of these weights after 640 images: (.*)\.$", card, flags=re.MULTILINE)
    assert missing is not None
    expected = {f"`{row.name}`" for row in sampled_metrics()} - {"`shapes-geneval`"} | {"`inference-time`"}
    assert set(missing[1].split(", ")) == expected


def test_a_value_over_too_few_images_is_marked(run: RunDir, tmp_path: Path) -> None:
    for num_images in (FRECHET_FEATURES, FRECHET_FEATURES + 1):
        measure(run, "frechet-shapes", 9.0, num_samples=num_images, seed=num_images)
    values = [row[1] for row in cells(card_of(run, tmp_path / "out"), "frechet-shapes")]
    assert values == ["9 (too few images)", "9"]


def test_nothing_measured_is_no_table(run: RunDir, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "out")
    assert "95% interval" not in card
    assert "Not measured of these weights after 640 images: `shapes-geneval`, " in card


@pytest.mark.parametrize("router", [row.name for row in ROWS])
def test_every_router_is_named_and_cited(router: str, tmp_path: Path) -> None:
    run = random_run_folder(tmp_path / "run", f"routing={router}", images_seen=SEEN)
    card = card_of(run, tmp_path / "out", "raw")
    (row,) = [row for row in ROWS if row.name == router]
    assert row.label in cells(card, "router")[0][1].replace("\\", "")
    assert row.source in card.replace("\\", "")
    assert ("mixture-of-experts" in card.split("---\n")[1]) == (router != "dense")


def test_names_of_records_do_nothing_in_the_card(run: RunDir, tmp_path: Path) -> None:
    record = json.loads(run.run_json.read_text())
    name = "a|b\n## c <img src=x> [d](e) \x1b[2J"
    run.run_json.write_text(json.dumps({**record, "name": name, "git_commit": "`|<b>"}))
    measure(run, "fid", 9.0, settings={"device": "x|y<script>"})
    card = card_of(run, tmp_path / "out")
    assert "# a\\|b \\#\\# c \\<img src=x\\> \\[d\\](e) \\\\x1b\\[2J" in card
    assert "<script>" not in card
    assert "\x1b" not in card
    assert len(cells(card, "fid")[0]) == 5


def test_the_card_of_a_model_of_classes_asks_for_classes(tmp_path: Path) -> None:
    card = card_of(random_run_folder(tmp_path / "run", "model.block=dit", images_seen=SEEN), tmp_path / "out")
    assert "makes images of classes" in card
    assert "text-to-image" not in card
    assert "pipe(0, guidance_scale" in card
    assert cells(card, "block") == [["block", "DiT"]]


def test_the_card_of_imported_weights_claims_no_training_here(tmp_path: Path) -> None:
    torch.save(public_state(), tmp_path / "public.pt")
    run = RunDir(tmp_path / "run")
    record = import_weights("dit", tmp_path / "public.pt", run.path, "ddpm", None, HEADS, 2, [])
    assert record.imported is not None
    card = card_of(run, tmp_path / "out")
    assert "It was trained elsewhere, and imported into ecdit." in card
    assert record.imported.sha256 in cells(card, "imported from")[0][1]
    for first in ("data set", "optimizer", "images seen", "training FLOPs as planned", "seed"):
        assert cells(card, first) == []
    assert cells(card, "data set and training") == [["data set and training", "not recorded"]]
    assert "and with the VAE:\n\n```bash\necdit sample FOLDER --class 0 --vae VAE\n```" in card


@pytest.mark.parametrize(
    ("prepared", "settings", "command"),
    [
        ("latent_set", (), "the data set and the VAE:\n\n```bash\necdit sample FOLDER --data DATA --vae VAE\n"),
        (
            "labelled_set", ("model.block=dit",),
            "the data set and the VAE:\n\n```bash\necdit sample FOLDER --class 0 --data DATA --vae VAE\n",
        ),
        ("captioned_pixels", (), "the data set:\n\n```bash\necdit sample FOLDER --data DATA\n"),
    ],
)  # fmt: skip
def test_the_card_of_a_run_on_a_prepared_set_has_a_command_that_works(
    prepared: str, settings: tuple[str, ...], command: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(prepared)
    run = random_run_folder(tmp_path / "run", f"data.path={folder}", "train.batch_images=8", *settings)
    card = card_of(run, tmp_path / "out")
    assert f"where `FOLDER` is this folder, and with {command}" in card
    assert "Pipeline" not in card


@pytest.fixture(scope="module")
def captioned_pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_static_extra()
    return prepared_pictures(tmp_path_factory.mktemp("pictures") / "set", 220, held_out=False)


def test_the_folder_holds_nothing_that_could_be_executed(run: RunDir, tmp_path: Path) -> None:
    card_of(run, tmp_path / "out")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors", ".md"}
    assert read_exported(RunDir(tmp_path / "out")).images_seen == SEEN
