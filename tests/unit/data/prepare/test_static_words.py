"""Captions by static word embeddings: stored as any other features, and encoded anew where a model is sampled."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.config.overrides import load_config
from experiments.config.prepared_set import FORMS_VERSION, Encoder, read_index
from experiments.data.loader import TrainStream
from experiments.data.order import shuffled
from experiments.data.prepare.job import prepare
from experiments.data.prepare.request import Request
from experiments.data.prepare.shards import VALIDATION_SEED
from experiments.data.prepare.static_words import StaticWords, find_static_words
from experiments.data.sources.latents import Latents
from experiments.data.sources.pixels import Pixels
from experiments.errors import ConfigError
from tests.real_images import need_static_extra, tensors_of

need_static_extra()


@pytest.fixture(scope="module")
def words_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    (folder / "source").mkdir()
    captions = ["a red ball", "a tall green tree by the sea", "\N{GOAT}", "!?", *["a cat"] * 4]
    for number, caption in enumerate(captions):
        pixels = np.full((8, 8, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "source" / f"{number}.png")
        (folder / "source" / f"{number}.txt").write_text(caption)
    request = Request(str(folder / "source"), text="static", image_size=8, max_tokens=6, validation_images=2)
    prepare(request, folder / "set")
    return folder / "set"


def test_a_caption_is_the_rows_of_its_tokens_and_an_end_and_the_mean_of_its_words() -> None:
    encoded = StaticWords(8).encode(["red ball", "", "ball"]).tensors
    assert encoded["text_length_N"].tolist() == [3, 1, 2]
    text, pooled = encoded["text_MV"].float(), encoded["pooled_NU"].float()
    assert text.shape == (6, 256)
    torch.testing.assert_close(pooled[0], text[:2].mean(dim=0), atol=1e-3, rtol=1e-3)
    assert (pooled[1] == 0).all()
    assert torch.equal(text[2], text[3])  # the end token
    assert torch.equal(text[1], text[4])  # the word in either caption
    assert text[3].abs().max() > 0


def test_a_long_caption_is_cut_keeps_its_end_and_is_counted() -> None:
    encoder = StaticWords(4)
    encoded = encoder.encode(["one two three", "one two three four five"])
    assert encoded.tensors["text_length_N"].tolist() == [4, 4]
    assert encoded.num_cut == {"static": 1}
    assert torch.equal(encoded.tensors["text_MV"][3], encoded.tensors["text_MV"][7])


@pytest.mark.parametrize("caption", ["", "!?", "\N{GOAT}", "\u2014"])
def test_a_caption_without_a_known_word_has_a_problem(caption: str) -> None:
    assert StaticWords(8).problem(caption) == "its caption has no word that the static embedding knows"


@pytest.mark.parametrize("caption", ["a", "7", "\u4f60", "caf\u00e9 \N{GOAT}"])
def test_a_caption_with_one_has_none(caption: str) -> None:
    assert StaticWords(8).problem(caption) is None


def test_captions_without_known_words_are_listed_and_the_set_is_read_as_any_other(words_set: Path) -> None:
    index = read_index(words_set)
    assert (index.text_width, index.pooled_width, index.caption_length, index.num_cut("static")) == (256, 256, 6, 1)
    assert index.text_encoders == {"static"}
    left = [json.loads(line) for line in (words_set / "left_out.jsonl").read_text().splitlines()]
    assert {one["name"] for one in left} == {"2.png", "3.png"}
    assert {one["reason"] for one in left} == {"its caption has no word that the static embedding knows"}
    config = load_config([f"data.path={words_set}", "train.batch_images=4", "train.caption_dropout=0.5"])
    batch = TrainStream(config).batch(0)
    assert batch.text_BLV is not None
    assert batch.text_BLV.shape == (4, 6, 256)
    assert batch.text_length_B is not None
    assert (batch.text_length_B == 1).any()  # dropped
    assert (batch.text_length_B > 1).any()


def test_a_small_source_whose_validation_caption_has_no_known_word_validates_with_the_next(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    first, second = shuffled(VALIDATION_SEED, np.arange(2), 24).tolist()
    for number in range(24):
        Image.new("RGB", (8, 8)).save(source / f"{number:02d}.png")
        (source / f"{number:02d}.txt").write_text("\N{GOAT}" if number == first else "a cat")
    made = prepare(Request(str(source), text="static", image_size=8, max_tokens=6), tmp_path / "set")
    assert made is not None
    assert (made.index.num_images("train"), made.index.num_damaged) == (22, 1)
    assert tensors_of(tmp_path / "set", "validation", "row_N").tolist() == [second]


def test_new_captions_have_the_features_of_stored_ones(words_set: Path) -> None:
    source = Pixels(load_config([f"data.path={words_set}", "train.batch_images=4"]).data)
    assert source.takes_captions
    stored = source.validation(range(2))
    for place, caption in enumerate(source.validation_captions(range(2))):
        text, length, pooled = source.encode([caption])
        assert torch.equal(text[0], stored["text_BLV"][place])
        assert length[0] == stored["text_length_B"][place]
        assert torch.equal(pooled[0], stored["pooled_BU"][place])
    with pytest.raises(ConfigError, match=r"no word that the static embedding knows: '!'\. Use other words\."):
        source.encode(["a dog", "!"])
    assert source.num_cut(["a dog", "a dog and a cat and a bird", "a cat"]) == 1  # six tokens are read


def test_latents_may_have_static_captions_too(words_set: Path, encoder_folders: dict[str, str], tmp_path: Path) -> None:
    request = Request(
        str(words_set.parent / "source"), encoder_folders["vae"], text="static", image_size=8, max_tokens=6,
        validation_images=2,
    )  # fmt: skip
    prepare(request, tmp_path / "set")
    index = read_index(tmp_path / "set")
    assert (index.images, index.text_encoders, index.schema_version) == ("latents", {"static"}, FORMS_VERSION)
    config = load_config(["routing=dense", f"data.path={tmp_path / 'set'}"])
    assert config.data.name == "latents"
    assert Latents(config.data).encode(["a dog"])[0].shape == (1, 6, 256)


def test_features_of_another_version_are_refused() -> None:
    entry = Encoder(path="wordllama 0.3", kind="StaticWords", sha256="0" * 64)
    here = find_static_words()
    with pytest.raises(ConfigError) as caught:
        StaticWords.opened(8, entry)
    assert str(caught.value) == (
        f"the data set was made with wordllama 0.3, and {here.path} is installed, whose features are others. Install "
        "that version, or prepare the data set again."
    )


def test_a_missing_or_damaged_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = sys.modules["experiments.data.prepare.static_words"]
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    message = r"--text static needs the package no_such_package, which is not installed\. Install .*ecdit\[static\]"
    with pytest.raises(ConfigError, match=message):
        find_static_words()
    (tmp_path / "empty_package").mkdir()
    (tmp_path / "empty_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "PACKAGE", "empty_package")
    with pytest.raises(ConfigError, match=r"the package empty_package lacks its table of words, or it is damaged\."):
        find_static_words()
