"""`ecdit data prepare` of names on a Hub: by the real clients, over HTTP, from a Hub on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.config.prepared_set import read_index
from tests.real_images import IMAGE_SIZE, MAX_TOKENS, write_metadata
from tests.small_hub import serve_hub
from tests.training_runs import ecdit

pytestmark = [pytest.mark.slow, pytest.mark.multi]


@pytest.fixture
def hub_root(encoder_folders: dict[str, str], tmp_path: Path) -> Path:
    """A data set, a model of its own, and a pipeline whose T5 has its tokenizer in a folder beside it."""
    root = tmp_path / "hub"
    write_metadata(root / "datasets" / "some" / "pictures", 10)
    shutil.copytree(encoder_folders["clip"], root / "models" / "some" / "clip")
    pipeline = root / "models" / "some" / "pipeline"
    shutil.copytree(encoder_folders["vae"], pipeline / "vae")
    shutil.copytree(encoder_folders["t5"], pipeline / "text_encoder_2")
    (pipeline / "tokenizer_2").mkdir()
    for file in (pipeline / "text_encoder_2").glob("tokenizer*"):
        file.rename(pipeline / "tokenizer_2" / file.name)
    (pipeline / "transformer").mkdir()
    (pipeline / "transformer" / "model.safetensors").write_bytes(b"large, and not asked for")
    return root


def test_data_set_and_models_come_from_the_hub_and_then_from_the_cache(
    hub_root: Path, encoder_folders: dict[str, str], tmp_path: Path
) -> None:
    models = ["--vae", "some/pipeline/vae", "--t5", "some/pipeline/text_encoder_2", "--clip", "some/clip"]
    sizes = ["--image-size", str(IMAGE_SIZE), "--max-tokens", str(MAX_TOKENS)]
    command = ["data", "prepare", "some/pictures"]  # forked without the clients, which read settings at their import
    with serve_hub(hub_root) as (address, asked):
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = ecdit([*command, tmp_path / "set", *models, *sizes, "--json"], **settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train_images"] == 9
    assert not [path for path in asked if "transformer/" in path]
    assert "it/s" not in done.stderr  # no bars in a log
    index = read_index(tmp_path / "set")
    assert (index.source.path, index.t5.path) == ("some/pictures", "some/pipeline/text_encoder_2")
    local = [word for name, folder in encoder_folders.items() for word in (f"--{name}", folder)]
    settings["HF_HUB_OFFLINE"] = "1"
    offline = ecdit([*command, tmp_path / "again", *local, *sizes, "--json"], **settings)
    assert offline.returncode == 0, offline.stderr
    assert (tmp_path / "again" / "train-00000.safetensors").read_bytes() == (
        tmp_path / "set" / "train-00000.safetensors"
    ).read_bytes()
    gone = ecdit([*command[:-1], "other/pictures", tmp_path / "none", *local, *sizes], **settings)
    assert gone.returncode == 2
    assert gone.stderr.splitlines()[-1].startswith(
        "error: SOURCE other/pictures is no path, and the Hugging Face Hub does not give it: "
    )
    assert not (tmp_path / "none").exists()
