"""FID and CLIP score against their definitions, on networks small enough to make here; nothing reaches the network."""

import hashlib
import json
import pickle
import shutil
import socket
import sys

import numpy as np
import pytest
import scipy
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    logging,
)

from experiments.errors import ConfigError
from experiments.evaluation.metrics.clip_score import ClipScore, ClipScores
from experiments.evaluation.metrics.fid import Fid, InceptionBackbone, InceptionDistance
from experiments.evaluation.metrics.sampled_metric import UserFiles
from experiments.evaluation.sampling.batches import as_pixels
from experiments.evaluation.sampling.generate import SamplerSettings
from experiments.evaluation.sampling.settings import Conditions
from experiments.evaluation.score import RunScorer, load_resources
from experiments.flow.samplers import Guidance

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "two blue squares", "a heart", "a moon above a bar", "x"]
MAX_TOKENS = 16
FEW = Conditions(4, 4, 0, "ema", "fp32", SamplerSettings(1, Guidance(1.0)))
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class ChannelMeans(nn.Module):
    """Three features, so that the distance has a closed form; far from 0, so that single precision would lose it."""

    num_features = 3

    def forward(self, pixels_BCHW):
        return pixels_BCHW.float().mean((2, 3))


def save_clip(folder, seed):
    """A CLIP of 10 thousand weights that spells words with letters, as transformers saves it."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53, "max_position_embeddings": MAX_TOKENS}
    text = CLIPTextConfig(vocab_size=len(tokens), **SMALL, **ends)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **SMALL)
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, initializer_factor=20.0))
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny", seed=0)


@pytest.fixture
def damaged(tmp_path):
    return save_clip(tmp_path / "damaged", seed=0)


def images(count, seed=0, size=32):
    """Bright noise in [-1, 1] whose channels vary together."""
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (0.6 + 0.1 * noise * noise[:, :1] + 0.02 * seed).clamp(-1, 1)


def error_of(metrics, inception_weights=None, clip_model=None):
    with pytest.raises(ConfigError) as caught:
        load_resources(metrics, UserFiles(inception_weights, clip_model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fid_is_the_frechet_distance_of_all_images_whatever_the_batches():
    real, generated = images(40), images(30, seed=3)
    metrics = InceptionDistance(ChannelMeans(), CPU)
    for batch in real.split(7):
        metrics.add_real(batch)
    for batch in generated.split(11):
        metrics.add(batch)
    a, b = (as_pixels(x).double().mean((1, 2)).numpy() for x in (real, generated))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert metrics.value() == pytest.approx(expected, rel=1e-5)
    assert metrics.num_generated == 30


def test_covariances_are_in_double_precision():
    metrics = InceptionDistance(ChannelMeans(), CPU)
    real, generated = images(300), images(300).flip(0)
    metrics.add_real(real)
    metrics.add(generated)
    assert 0 <= metrics.value() < 1e-8  # single precision is off by 1e-3 of the mean's square


def test_fid_of_one_image_is_refused():
    metrics = InceptionDistance(ChannelMeans(), CPU)
    metrics.add_real(images(5))
    metrics.add(images(1))
    with pytest.raises(ConfigError, match=r"at least 2 images.*--images"):
        metrics.value()


def test_clip_score_is_the_mean_cosine_of_each_image_and_its_caption_with_an_interval_over_images(clip_folder):
    shown = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    cosines = []
    for picture, caption in zip(as_pixels(shown), CAPTIONS, strict=True):
        pixels = processor(picture.numpy(), return_tensors="pt")["pixel_values"]
        tokens = tokenizer(caption, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = model(input_ids=tokens, pixel_values=pixels)
        cosines.append(float((output.image_embeds * output.text_embeds).sum()))
    assert min(cosines) < 0 < max(cosines)
    scores = 100 * np.maximum(cosines, 0)

    metrics = ClipScores(ClipScore.load(UserFiles(clip_model=clip_folder)), CPU)
    metrics.add(shown[:2], CAPTIONS[:2])
    metrics.add(shown[2:], CAPTIONS[2:])
    value, low, high = metrics.mean_with_interval()
    assert value == pytest.approx(scores.mean(), rel=1e-4)
    half_width = 1.959964 * scores.std(ddof=1) / np.sqrt(5)
    assert high == pytest.approx(scores.mean() + half_width, rel=1e-4)
    assert low == pytest.approx(max(0, scores.mean() - half_width), rel=1e-4)
    assert len(metrics.scores) == 5


def test_captions_longer_than_the_model_keep_their_end_token(clip_folder):
    def score(caption):
        metrics = ClipScores(backbone, CPU)
        metrics.add(images(1), [caption])
        return metrics.scores[0]

    backbone = ClipScore.load(UserFiles(clip_model=clip_folder))
    tails = [score(begin + "q" * 3 * MAX_TOKENS) for begin in ("ab", "xy", "kk", "zf")]
    assert len(set(tails)) > 1  # without it CLIP reads the start token, which sees no other


def test_a_clip_model_is_read_without_the_network(clip_folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert ClipScore.load(UserFiles(clip_model=clip_folder)).model is not None


def test_settings_tell_weights_apart_and_name_them(clip_folder, tmp_path):
    other = save_clip(tmp_path / "tiny", seed=1)
    first, second = (ClipScore.load(UserFiles(clip_model=folder)).settings for folder in (clip_folder, other))
    digest = hashlib.sha256((clip_folder / "model.safetensors").read_bytes()).hexdigest()[:12]
    assert first == {"clip_model": "tiny", "clip_sha256": digest}
    assert second["clip_model"] == "tiny"
    assert second != first


def test_a_score_of_another_clip_is_measured_anew_and_a_renamed_folder_is_the_same(clip_folder, tmp_path, random_run):
    def scorer(folder):
        return RunScorer(run, ["clip-score"], FEW, load_resources(["clip-score"], UserFiles(clip_model=folder)))

    run = random_run("routing=dense")
    (first,) = scorer(clip_folder).measure()
    other = scorer(save_clip(tmp_path / "tiny", seed=1))
    assert other.missing == ["clip-score"]
    (second,) = other.measure()
    assert first.settings["clip_sha256"] != second.settings["clip_sha256"]
    renamed = scorer(shutil.copytree(clip_folder, tmp_path / "renamed"))
    assert renamed.missing == []
    assert renamed.measure() == [first]


def test_fid_in_features_of_other_weights_is_measured_anew(random_run):
    def scorer(digest, name="inception.pth"):
        backbone = InceptionBackbone(ChannelMeans(), {"inception_weights": name, "inception_sha256": digest})
        return RunScorer(run, ["fid"], FEW, {"fid": backbone})

    run = random_run("routing=dense")
    (row,) = scorer("0" * 12).measure()
    assert row.settings["inception_sha256"] == "0" * 12
    assert scorer("1" * 12).missing == ["fid"]
    assert scorer("0" * 12, "renamed.pth").past == [row]


def test_only_the_networks_that_are_asked_for_are_loaded():
    assert load_resources(["shapes-geneval", "frechet-shapes"], UserFiles()) == {
        "shapes-geneval": None, "frechet-shapes": None,
    }  # fmt: skip


@pytest.mark.parametrize(("metric", "option"), [("fid", "--inception-weights FILE"), ("clip-score", "--clip-model FO")])
def test_without_the_option_an_error_says_what_to_install_and_what_to_name(metric, option):
    error = error_of([metric])
    assert option in error
    assert "pip install 'ecdit[metrics]'" in error


@pytest.mark.parametrize("library", ["torchmetrics.functional.multimodal", "transformers"])
def test_without_the_extra_an_error_says_what_to_install(library, clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    assert "pip install 'ecdit[metrics]'" in error_of(["clip-score"], clip_model=clip_folder)


def test_without_torch_fidelity_an_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "weights.pth")
    assert "pip install 'ecdit[metrics]'" in error_of(["fid"], inception_weights=tmp_path / "weights.pth")


def test_files_that_are_no_weights_are_refused_and_run_nothing(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    assert str(tmp_path / "no.pth") in error_of(["fid"], inception_weights=tmp_path / "no.pth")
    for content in (b"", b"hello", pickle.dumps(Harmful())):
        (tmp_path / "weights.pth").write_bytes(content)
        assert "weights.pth is damaged" in error_of(["fid"], inception_weights=tmp_path / "weights.pth")
    assert not (tmp_path / "harm").exists()


def test_folders_that_hold_no_clip_model_are_refused_each_with_the_reason(tmp_path, damaged):
    assert "config.json is missing" in error_of(["clip-score"], clip_model=tmp_path / "nowhere")
    config = json.loads((damaged / "config.json").read_text())
    for change, reason in [
        ({"model_type": "siglip"}, "is of type 'siglip', not 'clip'"),
        ({"projection_dim": 4}, "cannot be read as a CLIP model"),
        ({"vision_config": config["vision_config"] | {"num_hidden_layers": 2}}, "lack vision_model.encoder.layers.1."),
    ]:
        (damaged / "config.json").write_text(json.dumps(config | change))
        assert reason in error_of(["clip-score"], clip_model=damaged)
    (damaged / "config.json").write_text("{")
    assert "cannot read" in error_of(["clip-score"], clip_model=damaged)


def test_damaged_and_missing_files_of_a_clip_model_are_named(damaged):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert f"{damaged} cannot be read as a CLIP model" in error_of(["clip-score"], clip_model=damaged)
    weights.unlink()
    assert "model.safetensors is missing" in error_of(["clip-score"], clip_model=damaged)


@pytest.fixture
def inception_file(tmp_path):
    """Random weights in the shapes of the real ones."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs torch-fidelity and a torchvision of the same build as torch: {error}")

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            return None

    torch.save({}, tmp_path / "nothing.pth")
    torch.manual_seed(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=str(tmp_path / "nothing.pth"))
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth", network


def test_inception_answers_with_torch_fidelitys_features_of_small_images(inception_file):
    path, network = inception_file
    backbone = Fid.load(UserFiles(inception_weights=path))
    pixels_BCHW = as_pixels(images(2)).permute(0, 3, 1, 2)
    with torch.no_grad():
        (expected_BF,) = network(pixels_BCHW)
        torch.testing.assert_close(backbone.network(pixels_BCHW), expected_BF)
    assert expected_BF.shape == (2, backbone.network.num_features)
    assert backbone.settings["inception_weights"] == "inception.pth"
    torch.save({"fc.bias": torch.zeros(3)}, path)
    assert "are not those of FID's InceptionV3" in error_of(["fid"], inception_weights=path)
