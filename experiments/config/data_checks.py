"""Checks that the settings of the data fit the data set, and that training measures only what its images allow."""

from __future__ import annotations

from experiments.config.blocks import BLOCKS, conditioned_by
from experiments.config.data_sets import DATA_SETS, captions_of, data_set_of, fixed_by, image_kinds
from experiments.config.metrics import training_metrics
from experiments.config.schema import RunConfig
from experiments.config.values import shown
from experiments.errors import ConfigError


def check_data(config: RunConfig) -> None:
    """Checks that the settings which a data set fixes have their value, and that training measures what it can."""
    data, row = config.data, data_set_of(config)
    _check_condition(config)
    for key, value in fixed_by(row, config.model.block).items():
        given = getattr(data, key)
        if given != value:
            others = [name for name, other in DATA_SETS.items() if other.fixed.get(key, given) == given]
            way_out = f"Use data.name={' or '.join(others)}." if value is None else f"Use data.{key}={value}."
            raise ConfigError(f"data.{key}={shown(str(given))} does not fit data.name={data.name}.", way_out)
    for key in captions_of(config).needed:
        if getattr(data, key) is None:
            raise ConfigError(f"data.{key}=None does not fit data.name={data.name}, whose captions have it.")
    if row.has_scenes or row.has_pictures:
        _check_metric_images(config)
        return
    for key in ("metric_images",) if row.has_pixels else ("sample_images", "metric_images"):
        if number := getattr(config.eval, key):
            reason = "no metric knows its images" if row.has_pixels else "pixels need the VAE"
            later = "" if row.has_pixels else ", and `ecdit sample` once there is a checkpoint"
            raise ConfigError(
                f"eval.{key}={number} does not fit data.name={data.name}: {reason}.", f"Use eval.{key}=0{later}."
            )


def _check_condition(config: RunConfig) -> None:
    """Checks that the data set has what the block is conditioned on: captions, or classes."""
    block, data, row = config.model.block, config.data, data_set_of(config)
    other = " or ".join(conditioned_by("caption" if BLOCKS[block].condition == "class" else "class"))
    if BLOCKS[block].condition == "class" and data.num_classes is None:
        labelled = " or ".join(name for name, other_row in DATA_SETS.items() if other_row.num_classes is not None)
        set_of, way_out = f"data.name={data.name}", f"Use data.name={labelled}"
        if data.path is not None:
            set_of, way_out = f"the data set {data.path}", "Prepare it with `ecdit data prepare --text labels`"
        raise ConfigError(
            f"model.block={block} is conditioned on classes, which {set_of} does not have.",
            f"{way_out}, or use model.block={other}.",
        )
    if BLOCKS[block].condition == "caption" and (data.num_classes is not None or row.captions is None):
        given = f"data.name={data.name}" if row.captions is None else f"data.num_classes={data.num_classes}"
        raise ConfigError(
            f"{given} means classes, and model.block={block} is conditioned on captions.", f"Use model.block={other}."
        )


def _check_metric_images(config: RunConfig) -> None:
    """Checks that the images are large enough, and enough, for every metric that training measures."""
    num_images = config.eval.metric_images
    if num_images == 0:
        return
    asked = f"eval.metric_images={num_images}"
    measured = training_metrics(image_kinds(config), with_captions=config.data.num_classes is None)
    for row in measured:
        enough = max(256, row.min_images)
        row.require_num_images(num_images, asked, f"Use eval.metric_images=0 for none, or {enough}.")
    for row in measured:
        way_out = f"Use eval.metric_images=0, or data.image_size={row.min_image_size} or more."
        row.require_image_size(config.data.image_size, asked, way_out)
