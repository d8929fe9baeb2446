"""Captions by T5 alone and by CLIP alone: what stands for tokens and for the whole caption, and that all reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ecdit_cli.app import run
from experiments.config.overrides import load_config
from experiments.config.prepared_set import FORMS_VERSION, read_index
from experiments.config.routers import ROUTERS
from experiments.data.loader import TrainStream
from experiments.data.prepare.job import prepare
from experiments.data.prepare.request import Request
from experiments.errors import ConfigError
from experiments.models.dit import DiT
from tests.real_images import (
    POOLED_WIDTH,
    TEXT_WIDTH,
    captioned_images,
    need_data_extra,
    tensors_of,
    write_sidecars,
)

need_data_extra()
ALONE = ("t5", "clip")
WIDTHS = {"t5": TEXT_WIDTH, "clip": POOLED_WIDTH}
Folders = dict[str, str]


def request_of(source: Path, name: str, encoder_folders: Folders, **settings: Any) -> Request:
    small: dict[str, Any] = {"image_size": 16, "max_tokens": 12, "shard_images": 4, "batch_images": 3}
    return Request(str(source), **{name: encoder_folders[name]}, text=name, **(small | settings))


@pytest.fixture(scope="module", params=ALONE)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encoder_folders: Folders) -> Any:
    folder = tmp_path_factory.mktemp(f"{request.param}-alone")
    source = write_sidecars(folder / "source", 12)
    prepare(request_of(source, request.param, encoder_folders, validation_images=4), folder / "set")
    return request.param, folder


def hidden_states(name: str, folder: str, caption: str) -> Any:
    """What the network itself gives for one caption, without padding beside it."""
    import transformers

    kind = {"t5": transformers.T5EncoderModel, "clip": transformers.CLIPTextModel}[name]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        caption, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        return kind.from_pretrained(folder).eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )


def test_features_are_those_of_the_one_network(made: tuple[str, Path], encoder_folders: Folders) -> None:
    name, folder = made
    shard = load_file(folder / "set" / "train-00000.safetensors")
    starts, captions = shard["text_start_N1"].tolist(), captioned_images(12)
    for place, row in enumerate(shard["row_N"].tolist()):
        output = hidden_states(name, encoder_folders[name], captions[row][1])
        text = shard["text_MV"][starts[place] : starts[place + 1]].float()
        torch.testing.assert_close(text, output.last_hidden_state[0], atol=2e-3, rtol=2e-3)
        pooled = output.pooler_output[0] if name == "clip" else output.last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(shard["pooled_NU"][place].float(), pooled, atol=2e-3, rtol=2e-3)


def test_the_index_names_the_one_encoder_and_the_set_is_whole(made: tuple[str, Path]) -> None:
    name, folder = made
    index = read_index(folder / "set")
    assert index.text_encoders == {name}
    assert (index.text_width, index.pooled_width) == (WIDTHS[name], WIDTHS[name])
    assert index.schema_version == FORMS_VERSION
    assert index.num_cut(name) > 0
    assert {"t5": index.num_cut("clip"), "clip": index.num_cut("t5")}[name] is None
    assert int(tensors_of(folder / "set", "train", "text_start_N1").diff().max()) == 12
    assert run(["data", "check", str(folder / "set")]) == 0


def test_a_run_reads_it(made: tuple[str, Path]) -> None:
    name, folder = made
    config = load_config([f"data.path={folder / 'set'}", "train.batch_images=4"])
    assert (config.data.name, config.data.text_width) == ("pixels", WIDTHS[name])
    batch = TrainStream(config).batch(0)
    assert batch.text_BLV.shape == (4, 12, WIDTHS[name])
    assert batch.pooled_BU.shape == (4, WIDTHS[name])


@pytest.mark.parametrize("router", [name for name in ROUTERS if ROUTERS[name].settings.get("unconditional_expert")])
def test_an_expert_of_images_without_a_caption_gets_them_or_is_refused(made: tuple[str, Path], router: str) -> None:
    """The empty caption is known by its single token, and that of CLIP has two."""
    name, folder = made
    words = [f"data.path={folder / 'set'}", "train.batch_images=4", "train.caption_dropout=1.0"]
    batch = TrainStream(load_config([*words, f"routing={router}", "routing.unconditional_expert=False"])).batch(0)
    assert batch.text_length_B.tolist() == [{"t5": 1, "clip": 2}[name]] * 4
    if name == "clip":
        with pytest.raises(ConfigError, match="CLIP alone encodes: the empty caption has two tokens there") as caught:
            load_config([*words, f"routing={router}"])
        assert "Use routing.unconditional_expert=False, or" in str(caught.value)
        return
    model = DiT(load_config([*words, f"routing={router}"]))
    assert bool(model.text(batch.caption).dropped_B.all())


def test_what_was_stopped_goes_on_to_the_same_files(
    made: tuple[str, Path], encoder_folders: Folders, tmp_path: Path
) -> None:
    name, folder = made
    shutil.copytree(folder / "set", tmp_path / "set")
    for file in ("index.json", "train-00001.json", "train-00001.safetensors"):
        (tmp_path / "set" / file).unlink()
    again = prepare(request_of(folder / "source", name, encoder_folders, validation_images=4), tmp_path / "set")
    assert again is not None
    assert again.num_files_made == 1
    assert again.index.fingerprint == read_index(folder / "set").fingerprint


def test_a_set_of_one_is_not_continued_with_the_other(made: tuple[str, Path], encoder_folders: Folders) -> None:
    name, folder = made
    other = {"t5": "clip", "clip": "t5"}[name]
    with pytest.raises(ConfigError, match=f"was begun with another text: {name} there, {other} here"):
        prepare(request_of(folder / "source", other, encoder_folders, validation_images=4), folder / "set")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "t5"}, "--t5 is missing, which encodes captions. Name it, or use --text static or --text labels."),
        ({"text": "captions", "t5": "a"}, "--clip is missing, which encodes captions. Name it, or use --text t5, "),
        ({"text": "captions", "clip": "a"}, "--t5 is missing, which encodes captions. Name it, or use --text clip, "),
        ({"text": "t5", "t5": "a", "clip": "b"}, "--clip does not fit --text t5. Leave it out."),
        ({"text": "clip", "t5": "a", "clip": "b"}, "--t5 does not fit --text clip. Leave it out."),
    ],
)
def test_encoders_that_do_not_fit_the_text_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Request("photos", **settings)
    assert str(caught.value).startswith(message)


def test_more_tokens_than_clip_reads_are_refused(encoder_folders: Folders, tmp_path: Path) -> None:
    source = write_sidecars(tmp_path / "source", 4)
    with pytest.raises(ConfigError) as caught:
        prepare(request_of(source, "clip", encoder_folders, max_tokens=77), tmp_path / "set")
    assert str(caught.value) == "--max-tokens 77 is more than the 16 tokens that --clip reads. Use --max-tokens 16."
    assert not (tmp_path / "set").exists()
