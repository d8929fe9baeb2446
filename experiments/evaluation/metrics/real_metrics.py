"""FID and CLIP score, by torchmetrics, with networks whose weights the user provides.

FID (Heusel et al. 2017) is the Frechet distance between real and generated images in the 2048 features of InceptionV3,
in torch-fidelity's port of the original network with the original's resizing of small images; sums are in float64. CLIP
score (Hessel et al. 2021) is 100 max(cos(image, caption), 0), averaged over images; it is in torchmetrics' units, 0 to
100. Nothing is ever downloaded. The libraries are in the extra `ecdit[metrics]`, and are imported only when needed.
`frechet.py` has the distance that needs no weights, `frechet-shapes`.

Legend: B images, C channels (3), H, W height and width, F features.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.errors import ConfigError, did_you_mean
from experiments.evaluation.metrics.intervals import normal_interval
from experiments.evaluation.sampling.batches import as_pixels
from experiments.inputs import parse_json, read_input

REAL_METRICS = ("fid", "clip-score")
INSTALL = "Install what it needs with: pip install 'ecdit[metrics]'."
INCEPTION_HINT = (
    "Download weights-inception-2015-12-05-6726825d.pth, an asset of torch-fidelity's release v0.2.0, and name it with "
    "--inception-weights FILE."
)
CLIP_HINT = (
    "Name with --clip-model FOLDER a CLIP model as transformers saves it (config.json, model.safetensors, the files of "
    "its tokenizer and preprocessor_config.json), such as a copy of openai/clip-vit-base-patch32."
)
NUM_INCEPTION_FEATURES = 2048
HASH_LENGTH = 12


class ClipInputs(Protocol):
    """Makes tensors of images or of captions, as torchmetrics calls it."""

    def __call__(self, **inputs: Any) -> Mapping[str, Tensor]:
        """Turns `images` into pixel_values, or `text` into input_ids and attention_mask."""


@dataclass(frozen=True)
class Backbones:
    """The networks of the metrics that were asked for, on the CPU.

    `inception` maps uint8 [B, C, H, W] to [B, F] and has F as `num_features`; `settings` are by metric.
    """

    inception: nn.Module | None = None
    clip: tuple[nn.Module, ClipInputs] | None = None
    settings: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricValue:
    """A value over `num_samples` images; `low` and `high` are the ends of its 95% interval, where it has one."""

    value: float
    num_samples: int
    low: float | None = None
    high: float | None = None


def load_backbones(metrics: Sequence[str], inception_weights: Path | None, clip_model: Path | None) -> Backbones:
    """Loads the networks that `metrics` need for 'fid' and 'clip-score', from local files only.

    Raises `ConfigError`, in one line with the way out, where an option, a file or a library is missing, or a file is
    damaged or a different one.
    """
    inception = _load_inception(inception_weights) if "fid" in metrics else None
    clip = _load_clip(clip_model) if "clip-score" in metrics else None
    settings: dict[str, dict[str, Any]] = {}
    if inception is not None and inception_weights is not None:
        settings["fid"] = {
            "inception_weights": inception_weights.name, "inception_sha256": _short_hash([inception_weights])
        }  # fmt: skip
    if clip is not None and clip_model is not None:
        settings["clip-score"] = {
            "clip_model": clip_model.resolve().name, "clip_sha256": _short_hash(_clip_weights(clip_model))
        }  # fmt: skip
    return Backbones(inception, clip, settings)


class RealMetrics:
    """Accumulates FID and CLIP score of one stream of images, one object for each condition; backbones are shared."""

    def __init__(self, backbones: Backbones, metrics: Sequence[str], device: torch.device) -> None:
        unknown = [metric for metric in metrics if metric not in REAL_METRICS]
        if unknown:
            raise ConfigError(f"unknown metric {unknown[0]!r}.", did_you_mean(unknown[0], REAL_METRICS))
        self._backbones = backbones
        self._metrics = tuple(metrics)
        self._device = device
        self._num_real = self._num_generated = 0
        self._clip_scores: list[float] = []
        self._fid = _frechet_inception_distance(backbones.inception, device) if "fid" in metrics else None
        assert backbones.clip is not None or "clip-score" not in metrics

    def add_real(self, images_BCHW: Tensor) -> None:
        """Adds real images for FID, float32 [B, C, H, W] in [-1, 1]; no other metric uses them."""
        if self._fid is not None:
            self._fid.update(_bytes_of(images_BCHW).to(self._device), real=True)
            self._num_real += len(images_BCHW)

    def add(self, images_BCHW: Tensor, captions: Sequence[str]) -> None:
        """Adds generated images, float32 [B, C, H, W] in [-1, 1], and the caption of each."""
        assert len(images_BCHW) == len(captions)
        pixels_BCHW = _bytes_of(images_BCHW).to(self._device)
        self._num_generated += len(captions)
        if self._fid is not None:
            self._fid.update(pixels_BCHW, real=False)
        if "clip-score" in self._metrics:
            self._clip_scores += [self._clip_score(*pair) for pair in zip(pixels_BCHW, captions, strict=True)]

    def values(self) -> dict[str, MetricValue]:
        """Returns the values by metric. Raises `ConfigError` when there are too few images for a covariance."""
        values: dict[str, MetricValue] = {}
        if self._fid is not None:
            if min(self._num_real, self._num_generated) < 2:
                raise ConfigError("FID needs at least 2 images.", "Ask for more with --images N.")
            distance = float(self._fid.compute())  # rounding may make it negative for equal images
            values["fid"] = MetricValue(max(0.0, distance), self._num_generated)
        if "clip-score" in self._metrics:
            interval = normal_interval(self._clip_scores, 0.0, 100.0)
            values["clip-score"] = MetricValue(fmean(self._clip_scores), len(self._clip_scores), *interval)
        return values

    def settings(self) -> dict[str, dict[str, Any]]:
        """Returns, by metric, the name of its backbone and the start of the SHA-256 of the weights."""
        return {metric: dict(self._backbones.settings.get(metric, {})) for metric in self._metrics}

    @torch.inference_mode()
    def _clip_score(self, pixels_CHW: Tensor, caption: str) -> float:
        """Returns the score of one image; torchmetrics has no interval, for which single values are needed."""
        clip = self._backbones.clip
        score = _library("torchmetrics.functional.multimodal").clip_score
        return float(score(pixels_CHW, caption, lambda: clip))


def _frechet_inception_distance(inception: nn.Module | None, device: torch.device) -> Any:
    assert inception is not None
    return _library("torchmetrics.image.fid").FrechetInceptionDistance(feature=inception).to(device)


def _bytes_of(images_BCHW: Tensor) -> Tensor:
    """Returns uint8 [B, C, H, W], the form in which images are saved."""
    assert images_BCHW.shape[1] == 3
    return as_pixels(images_BCHW).permute(0, 3, 1, 2)


class _InceptionFeatures(nn.Module):
    """Unpacks the features of torch-fidelity's network, which returns a tuple of the requested layers."""

    num_features = NUM_INCEPTION_FEATURES

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns features [B, F] of uint8 images of any size."""
        (features_BF,) = self.network(pixels_BCHW)
        assert isinstance(features_BF, Tensor)
        return features_BF


class _ClipFeatures(nn.Module):
    """A CLIP model of transformers 5 that returns tensors, as torchmetrics expects, and not objects with them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """Returns projected features [B, F]."""
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Returns projected features [B, F]."""
        return self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output


def _load_inception(path: Path | None) -> nn.Module:
    if path is None:
        raise ConfigError("FID needs the weights of InceptionV3.", f"{INCEPTION_HINT} {INSTALL}")
    if not path.is_file():
        raise ConfigError(f"there is no file {path} with the weights of InceptionV3.", INCEPTION_HINT)
    try:  # torch-fidelity loads with weights_only=False, which executes what is pickled, so the file is checked first
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch does not document what it raises for other files
        raise ConfigError(f"{path} is damaged, or not a file of weights.", INCEPTION_HINT) from error
    _library("torchmetrics.image.fid")
    network = _library("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    try:
        weights = network(
            "inception-v3-compat", [str(NUM_INCEPTION_FEATURES)], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, TypeError) as error:  # other keys or shapes, or no dictionary
        raise ConfigError(f"the weights in {path} are not those of FID's InceptionV3.", INCEPTION_HINT) from error
    return _InceptionFeatures(weights).eval()


def _load_clip(folder: Path | None) -> tuple[nn.Module, ClipInputs]:
    if folder is None:
        raise ConfigError("CLIP score needs a CLIP model.", f"{CLIP_HINT} {INSTALL}")
    _check_clip_folder(folder)
    _library("torchmetrics.functional.multimodal")
    transformers = _library("transformers")
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        inputs = _clip_inputs(transformers, folder, model.config.text_config.max_position_embeddings)
    except Exception as error:  # transformers does not document what it raises for damaged files
        raise ConfigError(f"{folder} cannot be read as a CLIP model: {_first_line(error)}.", CLIP_HINT) from error
    if report["missing_keys"]:  # transformers would continue with random ones
        raise ConfigError(f"the weights in {folder} lack {min(report['missing_keys'])}.", CLIP_HINT)
    return _ClipFeatures(model.eval()), inputs


def _check_clip_folder(folder: Path) -> None:
    """Raises `ConfigError` unless the folder has a config of the CLIP family and weights."""
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigError(f"there is no CLIP model in {folder}: config.json is missing.", CLIP_HINT)
    try:
        kind = parse_json(read_input(config)).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"cannot read {config}: {_first_line(error)}.", CLIP_HINT) from error
    if kind != "clip":
        raise ConfigError(f"the model in {folder} is of type {kind!r}, not 'clip'.", CLIP_HINT)
    if not _clip_weights(folder):
        raise ConfigError(f"there are no weights in {folder}: model.safetensors is missing.", CLIP_HINT)


def _clip_weights(folder: Path) -> list[Path]:
    """Returns the files that transformers reads, safetensors where there are any."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _clip_inputs(transformers: Any, folder: Path, max_tokens: int) -> ClipInputs:
    """Returns the model's own preprocessing, by PIL: torchvision's backend resizes slightly differently."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    images = transformers.CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)

    def inputs(**given: Any) -> Any:
        if "images" in given:
            return images(given["images"], return_tensors="pt")
        # truncated here, which keeps the end token: CLIP reads its features from it
        return tokenizer(given["text"], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")

    return inputs


def _library(name: str) -> Any:
    """Imports a module of the extra. Raises `ConfigError` where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"cannot import {name}: there is no module {error.name!r}.", INSTALL) from error
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
        hint = "Install torchvision and torch of the same build: both for CPU, or both for the same CUDA."
        raise ConfigError(f"cannot import {name}: {_first_line(error)}.", hint) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")


def _short_hash(paths: Sequence[Path]) -> str:
    """Returns the start of the SHA-256 of the concatenated contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:HASH_LENGTH]
