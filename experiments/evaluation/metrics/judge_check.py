"""Measures how often the judge of `shapes-geneval` is right, on renders whose content is known.

True pairs are an image and its own caption: the right answer is yes. Shuffled pairs are an image and the caption of
another image of the same kind: the right answer is mostly no, and yes as often as that caption happens to be true. The
images are blurred and noisy, as those of a sampler are.

Renders cannot reveal an error of the drawing code, because the judge's templates have the same error. The last row is
therefore measured on pictures that were drawn without that code (`independent_check.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

from experiments.data.scenes.captions import Assertion, assertion_of
from experiments.data.scenes.objects import Floats32
from experiments.data.scenes.scene import KINDS, Scene, Split, draw_scenes, render_scenes
from experiments.evaluation.metrics.independent_check import Misread, independent_pictures, misread_pictures
from experiments.evaluation.metrics.intervals import wilson
from experiments.evaluation.metrics.judge import Found, find_objects, verdict

DEGRADATIONS = ((0.0, 0.0), (0.8, 0.0), (1.2, 0.0), (0.0, 0.2), (0.8, 0.2), (1.2, 0.1))
"""Pairs of standard deviations: of a Gaussian blur in pixels, and of noise on the scale [-1, 1]."""
SPLITS: tuple[Split, ...] = ("validation", "held_out")
Source = Split | Literal["independent"]
"""The source of judged pictures: renders of a split, or pictures drawn without the data's drawing code."""


@dataclass(frozen=True)
class Checked:
    """The result for one split under one degradation, or for the independent pictures; shares are of `num_images`."""

    split: Source
    blur: float
    noise: float
    num_images: int
    num_right: int
    """The number of true pairs that the judge answers with yes."""
    num_yes_shuffled: int | None = None
    """The number of shuffled pairs answered with yes; None for the independent pictures, which are not shuffled."""
    num_true_shuffled: int | None = None
    """The number of shuffled pairs whose caption happens to be true."""
    misread: tuple[Misread, ...] = ()
    """The independent pictures whose caption the judge denies."""

    @property
    def agreement(self) -> float:
        """Returns the share of true pairs answered with yes."""
        return self.num_right / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """Returns the 95% interval of `agreement`."""
        return wilson(self.num_right, self.num_images)


def check_judge(
    num_images: int, seed: int = 0, on_images: Callable[[int], None] = lambda num: None
) -> Iterator[Checked]:
    """Yields the results of every split under every degradation, `num_images` each, then of the independent pictures.

    `on_images` is called with the number of images that were just judged.
    """
    random = np.random.default_rng(seed)
    for split in SPLITS:
        scenes = draw_scenes(seed, range(num_images), split)
        images_BCHW = render_scenes(scenes)
        true = [assertion_of(scene) for scene in scenes]
        shuffled = shuffled_within_kinds(true, random)
        num_true_shuffled = sum(is_true_of(scene, other) for scene, other in zip(scenes, shuffled, strict=True))
        for blur, noise in DEGRADATIONS:
            degraded = torch.from_numpy(degrade(images_BCHW, blur, noise, random))
            found = []
            for part in torch.split(degraded, 64):
                found += find_objects(part)
                on_images(len(part))
            yield Checked(
                split, blur, noise, num_images, _num_yes(found, true), _num_yes(found, shuffled), num_true_shuffled
            )
    pictures = independent_pictures()
    misread = tuple(misread_pictures(pictures))
    num_pictures = len(pictures.files)
    on_images(num_pictures)
    yield Checked("independent", 0.0, 0.0, num_pictures, num_pictures - len(misread), misread=misread)


def degrade(images_BCHW: Floats32, blur: float, noise: float, random: np.random.Generator) -> Floats32:
    """Returns images blurred by `blur` pixels, plus normal noise of deviation `noise`, clipped to [-1, 1]."""
    blurred = ndimage.gaussian_filter(images_BCHW, (0, 0, blur, blur)) if blur else images_BCHW
    noisy: Floats32 = blurred + noise * random.standard_normal(blurred.shape, dtype=np.float32)
    return noisy.clip(-1, 1)


def shuffled_within_kinds(assertions: Sequence[Assertion], random: np.random.Generator) -> list[Assertion]:
    """Returns for each image the assertion of another image of the same kind, where there are at least two."""
    shuffled = list(assertions)
    for kind in KINDS:
        places = random.permutation([place for place, each in enumerate(assertions) if each.kind == kind])
        for place, other in zip(places, np.roll(places, 1), strict=True):
            shuffled[place] = assertions[other]
    return shuffled


def is_true_of(scene: Scene, assertion: Assertion) -> bool:
    """Returns whether an assertion is true of a scene, computed from the objects of the scene."""
    things = [Found(thing.color, thing.shape, thing.x, thing.y, thing.radius, 0.0) for thing in scene.objects]
    return verdict(things, assertion).correct


def _num_yes(found: Sequence[Sequence[Found]], assertions: Sequence[Assertion]) -> int:
    return sum(verdict(things, assertion).correct for things, assertion in zip(found, assertions, strict=True))
