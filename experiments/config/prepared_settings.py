"""Derives the settings of a run from the prepared data set that `data.path` names.

A data set of `ecdit data prepare` determines the shape of images, the widths of text features and the number of
classes. Its fingerprint becomes a setting too, so that a run can tell its data set from another one. A set of latents
is `data.name=latents`, and one of pixels `data.name=pixels`; where no name is given, it follows from the set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config.features_record import read_features
from experiments.config.metrics import FRECHET_FEATURES
from experiments.config.prepared_set import DataSetIndex, ImageForm, read_index
from experiments.config.routers import routing_defaults
from experiments.config.train_settings import TrainConfig
from experiments.errors import ConfigError

DEFAULT_EVAL_IMAGES = 512


def with_latents(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested settings of a run on `latents`, completed from its data set as `_completed` does."""
    return _completed(settings, "latents")


def with_pixels(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested settings of a run on `pixels`, completed from its data set as `_completed` does.

    Raises `ConfigError` also where a batch does not fit the set, as `require_full_batches` does.
    """
    completed = _completed(settings, "pixels")
    default = TrainConfig.model_fields["batch_images"].default
    require_full_batches(settings.get("train", {}).get("batch_images", default), settings["data"]["path"])
    return completed


def require_full_batches(batch_images: int, path: str) -> None:
    """Raises `ConfigError` where a batch has more images than the set, so that it would hold some of them twice.

    Training on latents asks for it at its start, because settings for latents are also read without training.
    """
    available = read_index(Path(path)).num_images("train")
    if batch_images > available:
        raise ConfigError(
            f"train.batch_images={batch_images} is more than the {available} training images of {path}.",
            f"Use train.batch_images={available} or fewer, or prepare more images.",
        )


def named_by_path(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with the `data.name` that fits the set in `data.path`, where no name is given."""
    data = settings.get("data", {})
    if "name" in data or not data.get("path"):
        return dict(settings)
    return {**settings, "data": {**data, "name": read_index(Path(data["path"])).images}}


def _completed(settings: Mapping[str, Any], form: ImageForm) -> dict[str, Any]:
    """Returns the nested settings of a run on prepared images, completed from its data set.

    Raises `ConfigError` where a setting contradicts the data set: `data.fingerprint` when it is another one.
    """
    data = settings["data"]
    if not data.get("path"):
        raise ConfigError(
            f"data.name={form} needs a data set.", "Name a folder that `ecdit data prepare` wrote: data.path=FOLDER."
        )
    index = read_index(Path(data["path"]))
    if index.images != form:
        raise ConfigError(
            f"data.name={form} does not fit the data set {data['path']}, which holds {index.images}.",
            f"Use data.name={index.images}, or leave it out.",
        )
    _require_known_empty_caption(settings, index)
    given = settings_of(index)
    for key, value in given.items():
        if key in data and data[key] != value:
            raise ConfigError(
                f"data.{key}={data[key]} is not that of the data set {data['path']}, which has {value}.",
                f"Leave out data.{key}, or name another data.path.",
            )
    return {**settings, "data": {**data, **given}, "eval": _evaluation(settings.get("eval", {}), index, data["path"])}


def _require_known_empty_caption(settings: Mapping[str, Any], index: DataSetIndex) -> None:
    """Raises `ConfigError` for an expert of images without a caption, where the model cannot tell these from others.

    It knows them by a caption of one token (`EncodedCaption` in `models/embed.py`). The empty caption of CLIP alone has
    a start and an end token, so that this expert would get no image.
    """
    has_expert = routing_defaults(dict(settings.get("routing", {}))).get("unconditional_expert", False)
    if has_expert and index.text_encoders == {"clip"}:
        raise ConfigError(
            f"routing.unconditional_expert=True does not fit the data set {settings['data']['path']}, whose captions "
            "CLIP alone encodes: the empty caption has two tokens there, and is known by a single one.",
            "Use routing.unconditional_expert=False, or a data set of --text static or --text t5.",
        )


def settings_of(index: DataSetIndex) -> dict[str, Any]:
    """Returns the `data.*` settings that a prepared set fixes."""
    return {
        "fingerprint": index.fingerprint,
        "image_size": index.latent_size,
        "channels": index.channels,
        "vocab_size": None,
        "caption_length": index.caption_length or 1,  # a class stands in the place of a caption of one token
        "text_width": index.text_width,
        "pooled_width": index.pooled_width,
        "num_classes": None if index.class_names is None else len(index.class_names),
    }


def _evaluation(given: Mapping[str, Any], index: DataSetIndex, path: str) -> dict[str, Any]:
    """Returns the `eval` settings: by default at most `DEFAULT_EVAL_IMAGES` images, and no previews of latents.

    Raises `ConfigError` where more images are asked for than the data set has, and where metrics are asked for without
    the network that they need.
    """
    available = index.num_images("validation")
    previews = {} if index.images == "pixels" else {"sample_images": 0}
    images = given.get("images", min(available, DEFAULT_EVAL_IMAGES))
    if images > available:
        raise ConfigError(
            f"eval.images={images} is more than the {available} validation images of {path}.",
            f"Use eval.images={available}.",
        )
    if (sampled := given.get("metric_images", 0)) and index.images == "pixels":
        read_features(Path(path), index.fingerprint)  # now, because hours of training would end in this error
        if available <= FRECHET_FEATURES:
            raise ConfigError(
                f"eval.metric_images={sampled} does not fit the {available} validation images of {path}: "
                f"frechet-pictures compares samples with them in {FRECHET_FEATURES} features.",
                f"Use eval.metric_images=0, or prepare the set with --validation-images {4 * FRECHET_FEATURES}.",
            )
    return {**previews, **given, "images": images}
