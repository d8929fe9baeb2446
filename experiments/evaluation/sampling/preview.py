"""Draws sample grids and routing maps while a run trains, as PNG files in its `samples/` and in W&B.

A routing map shows how many experts processed each token, as a mean over the routed layers and the sampling steps (as
in EC-DIT's figure 6), beside the image it belongs to.

Legend: B images, C channels, H, W height and width, T tokens of an image.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from experiments.config.schema import RunConfig
from experiments.evaluation.sampling.generate import (
    SamplerSettings,
    empty_of,
    image_noise,
    sample,
    validation_captions,
)
from experiments.models.dit import DiTOutput
from experiments.records.storage import storage_errors
from experiments.records.writer import RecordWriter
from experiments.training.engine import Engine

PREVIEW_SCALE = 4
"""Screen pixels for each pixel of an image."""


class PreviewMap:
    """Accumulates the mean number of experts per token, over routed layers and calls of the model."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.sum_BT: Tensor | None = None
        self.num_layers = 0

    def watch(self, time: float, output: DiTOutput) -> None:
        """Counts the conditional half of one call."""
        for answer in output.feed_forward:
            if answer.assignment is not None:
                counts_BT = answer.experts_per_token_BT[: self.num_images].float().cpu()
                self.sum_BT = counts_BT if self.sum_BT is None else self.sum_BT + counts_BT
                self.num_layers += 1

    def maps(self) -> Tensor | None:
        """Returns the maps [B, side, side], or None when nothing is routed."""
        if self.sum_BT is None:
            return None
        side = round(self.sum_BT.shape[1] ** 0.5)
        return (self.sum_BT / self.num_layers).view(-1, side, side)


def preview(engine: Engine, config: RunConfig, images_seen: int, writer: RecordWriter | None) -> None:
    """Samples the first validation captions with the weights as they are; it is an observer of the training loop.

    Only the process that writes samples, unless the layers are collective: then all processes do the same work.
    """
    num_images = min(config.eval.sample_images, config.eval.images)
    if num_images == 0 or (writer is None and not engine.layers_are_collective):
        return
    captions = validation_captions(config, num_images)
    noise = image_noise(config, range(num_images), seed=config.data.seed).to(engine.device)
    compute = PreviewMap(num_images)
    settings = SamplerSettings.of(config)
    empty = empty_of(engine.model, config, captions)
    images_BCHW = sample(engine.model, captions, noise, settings, compute.watch, empty).cpu()
    if writer is None:
        return
    folder = writer.run_dir.samples
    _save(writer, "samples", folder / f"images_{images_seen:012d}.png", grid(images_BCHW), images_seen)
    maps = compute.maps()
    if maps is not None:
        shown = torch.cat([images_BCHW, _as_images(maps, images_BCHW.shape[-1])])
        _save(writer, "routing_maps", folder / f"routing_{images_seen:012d}.png", grid(shown, num_images), images_seen)


def grid(images_BCHW: Tensor, columns: int = 8, scale: int = PREVIEW_SCALE) -> Image.Image:
    """Returns images in [-1, 1] side by side with a thin white gap, each pixel `scale` wide."""
    big = F.interpolate(images_BCHW, scale_factor=scale, mode="nearest")
    framed = F.pad(big, (2, 2, 2, 2), value=1.0)
    missing = -len(framed) % columns
    framed = torch.cat([framed, torch.ones(missing, *framed.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in torch.split(framed, columns)]
    pixels_CHW = ((torch.cat(rows, dim=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy())


def _as_images(maps_BHW: Tensor, size: int) -> Tensor:
    """Returns heat maps as grey images [B, 3, H, W] in [-1, 1]: black is 0 experts, white the most in this set."""
    scaled = maps_BHW / maps_BHW.max().clamp(min=1e-6) * 2 - 1
    return F.interpolate(scaled[:, None], size=(size, size), mode="nearest").expand(-1, 3, -1, -1)


def _save(writer: RecordWriter, name: str, path: Path, picture: Image.Image, images_seen: int) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    writer.images(name, path, images_seen)
