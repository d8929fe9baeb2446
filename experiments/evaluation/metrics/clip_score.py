"""Measures `clip-score`: how well images match their captions, by a CLIP model that the user provides.

CLIP score (Hessel et al. 2021) is 100 max(cos(image, caption), 0), averaged over images; it is in torchmetrics' units,
0 to 100. torchmetrics computes it with the model's own preprocessing.

Legend: B images, C channels (3), H, W height and width, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.errors import ConfigError
from experiments.evaluation.metrics.intervals import normal_interval
from experiments.evaluation.metrics.sampled_metric import LabelledBatch, MetricTask, SampledMetric, UserFiles
from experiments.evaluation.metrics.user_networks import INSTALL, bytes_of, first_line, library, short_hash
from experiments.inputs import parse_json, read_input
from experiments.records.record_types import EvalRow

CLIP_HINT = (
    "Name with --clip-model FOLDER a CLIP model as transformers saves it (config.json, model.safetensors, the files of "
    "its tokenizer and preprocessor_config.json), such as a copy of openai/clip-vit-base-patch32."
)


class ClipInputs(Protocol):
    """Makes tensors of images or of captions, as torchmetrics calls it."""

    def __call__(self, **inputs: Any) -> Mapping[str, Tensor]:
        """Turns `images` into pixel_values, or `text` into input_ids and attention_mask."""


@dataclass(frozen=True)
class ClipBackbone:
    """A CLIP model on the CPU with its preprocessing; `settings` says in the records which weights it has."""

    model: nn.Module
    inputs: ClipInputs
    settings: dict[str, Any] = field(default_factory=dict)


class ClipScore(SampledMetric):
    """Computes the mean CLIP score of the images, with its interval over images."""

    not_compared = frozenset({"clip_model"})  # the name of the folder; the checksum says which weights it holds

    def __init__(self, task: MetricTask) -> None:
        assert task.run is not None
        backbone: ClipBackbone = task.resources["clip-score"]
        self._scores = ClipScores(backbone, next(task.run.model.parameters()).device)

    @classmethod
    def load(cls, files: UserFiles) -> ClipBackbone:
        """Loads a CLIP model from a local folder.

        Raises `ConfigError`, in one line with the way out, where the option, a file or a library is missing, or a file
        is damaged or a different one.
        """
        (model, inputs), folder = _load_clip(files.clip_model), files.clip_model
        assert folder is not None
        settings = {"clip_model": folder.resolve().name, "clip_sha256": short_hash(_clip_weights(folder))}
        return ClipBackbone(model, inputs, settings)

    def add(self, batch: LabelledBatch) -> None:
        """Adds generated images in [-1, 1] with their captions."""
        self._scores.add(batch.images_BCHW, batch.captions)

    def rows(self, base: EvalRow) -> list[EvalRow]:
        """Returns the row of the mean."""
        value, low, high = self._scores.mean_with_interval()
        update = {"metric": "clip-score", "value": value, "interval_low": low, "interval_high": high}
        return [base.model_copy(update=update | {"num_samples": len(self._scores.scores)})]


class ClipScores:
    """Accumulates the score of each image; torchmetrics has no interval, for which single values are needed."""

    def __init__(self, backbone: ClipBackbone, device: torch.device) -> None:
        self._clip = (backbone.model, backbone.inputs)
        self._device = device
        self.scores: list[float] = []

    @torch.inference_mode()
    def add(self, images_BCHW: Tensor, captions: Sequence[str]) -> None:
        """Adds generated images, float32 [B, C, H, W] in [-1, 1], and the caption of each."""
        clip_score = library("torchmetrics.functional.multimodal").clip_score
        pixels_BCHW = bytes_of(images_BCHW).to(self._device)
        for pixels_CHW, caption in zip(pixels_BCHW, captions, strict=True):
            self.scores.append(float(clip_score(pixels_CHW, caption, lambda: self._clip)))

    def mean_with_interval(self) -> tuple[float, float | None, float | None]:
        """Returns the mean score and the ends of its 95% interval, which one image does not have."""
        return fmean(self.scores), *normal_interval(self.scores, 0.0, 100.0)


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


def _load_clip(folder: Path | None) -> tuple[nn.Module, ClipInputs]:
    if folder is None:
        raise ConfigError("CLIP score needs a CLIP model.", f"{CLIP_HINT} {INSTALL}")
    _check_clip_folder(folder)
    library("torchmetrics.functional.multimodal")
    transformers = library("transformers")
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        inputs = _clip_inputs(transformers, folder, model.config.text_config.max_position_embeddings)
    except Exception as error:  # transformers does not document what it raises for damaged files
        raise ConfigError(f"{folder} cannot be read as a CLIP model: {first_line(error)}.", CLIP_HINT) from error
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
        raise ConfigError(f"cannot read {config}: {first_line(error)}.", CLIP_HINT) from error
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
