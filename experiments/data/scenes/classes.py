"""The classes of scenes, for runs that are conditioned on the class of an image in place of its caption.

The class of a scene is its kind with the colour and the shape of its first object: 6 x 8 x 8 = 384 classes, numbered in
this order. A class says less than a caption: not what the second object is, nor how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from experiments.config.schema import DataConfig
from experiments.data.scenes.captions import describe
from experiments.data.scenes.objects import COLORS, SHAPES
from experiments.data.scenes.scene import KINDS, Scene

CLASSES: tuple[tuple[str, str, str], ...] = tuple(product(KINDS, COLORS, SHAPES))
"""The (kind, colour, shape) of every class."""

_NUMBERS = {look: number for number, look in enumerate(CLASSES)}


def class_of(scene: Scene) -> int:
    """Returns the number of a scene's class."""
    return _NUMBERS[scene.kind, scene.objects[0].color, scene.objects[0].shape]


def class_name(number: int) -> str:
    """Returns a class in words, such as `counting: red circle`."""
    kind, color, shape = CLASSES[number]
    return f"{kind}: {color} {shape}"


def class_names(data: DataConfig) -> list[str]:
    """Returns the names of all classes in the order of their numbers."""
    return [class_name(number) for number in range(len(CLASSES))]


def attributes_of(scenes: Sequence[Scene]) -> dict[str, list[str]]:
    """Returns what the class of each scene consists of: its kind, and the colour and the shape of its first object."""
    first = [scene.objects[0] for scene in scenes]
    return {
        "kind": [scene.kind for scene in scenes],
        "colour": [each.color for each in first],
        "shape": [each.shape for each in first],
    }


def prompts_of(data: DataConfig, scenes: Sequence[Scene]) -> list[str] | list[int]:
    """Returns what a run is asked for when it is to show such scenes: their captions, or their classes."""
    if data.num_classes is None:
        return [describe(scene) for scene in scenes]
    return [class_of(scene) for scene in scenes]
