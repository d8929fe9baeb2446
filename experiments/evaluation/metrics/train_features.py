"""Makes `features.safetensors`: `python -m experiments.evaluation.metrics.train_features FILE`, a minute on one core.

The network learns from renders of the training split what is in a scene (which looks, how many of each colour and
shape, and where). Two thirds of the renders are blurred or noisy, and it also learns by how much. The result is
deterministic on one machine; others round differently, so that the weights ship with the package and this program
documents their origin.

Legend: B images, C channels, H, W height and width, K targets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.data.scenes.features import IMAGE_SIZE, NUM_FEATURES, FeatureNetwork
from experiments.data.scenes.objects import COLORS, SHAPES
from experiments.data.scenes.scene import Scene, draw_scenes, render_scenes

BATCH_IMAGES = 128
NUM_STEPS = 400
PEAK_LEARNING_RATE = 4e-3
MAX_BLUR = 1.2
"""The standard deviation of the widest blur, in pixels."""
MAX_NOISE = 0.3
"""The standard deviation of the strongest noise, where black to white is 2."""
GRID = 4
"""The number of cells along each side of the frame; the network learns how many objects are centred in each cell."""

_NUM_LOOKS = len(COLORS) * len(SHAPES)
_NUM_AMOUNTS = len(COLORS) + len(SHAPES) + GRID**2 + 3
_LOOK_NUMBERS = {
    (color, shape): row * len(SHAPES) + column
    for row, color in enumerate(COLORS)
    for column, shape in enumerate(SHAPES)
}


def train_feature_network(seed: int = 0, num_steps: int = NUM_STEPS) -> FeatureNetwork:
    """Trains a network on the first renders of the training split of data seed `seed`."""
    torch.manual_seed(seed)
    network = FeatureNetwork()
    read_out = nn.Linear(NUM_FEATURES, _NUM_LOOKS + _NUM_AMOUNTS)
    parameters = [*network.parameters(), *read_out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=num_steps)
    for step in range(num_steps):
        scenes = draw_scenes(seed, range(step * BATCH_IMAGES, (step + 1) * BATCH_IMAGES), "train", IMAGE_SIZE)
        images_BCHW, damage_B2 = degrade(torch.from_numpy(render_scenes(scenes)))
        said_BK = read_out(network(images_BCHW.contiguous(memory_format=torch.channels_last)))
        loss = _loss(said_BK, looks_of_scenes(scenes), torch.cat([amounts_of_scenes(scenes), damage_B2], dim=1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.eval()
    return network


def looks_of_scenes(scenes: Sequence[Scene]) -> Tensor:
    """Returns [B, 64] float32: 1 where a scene holds an object of that colour and shape."""
    looks_BK = torch.zeros(len(scenes), _NUM_LOOKS)
    for row, scene in enumerate(scenes):
        looks_BK[row, [_LOOK_NUMBERS[thing.color, thing.shape] for thing in scene.objects]] = 1
    return looks_BK


def amounts_of_scenes(scenes: Sequence[Scene]) -> Tensor:
    """Returns [B, K] float32: objects of each colour, of each shape, in each cell of a grid, and background grey."""
    colors, shapes = list(COLORS), list(SHAPES)
    amounts_BK = torch.zeros(len(scenes), _NUM_AMOUNTS - 2)
    for row, scene in zip(amounts_BK, scenes, strict=True):
        for thing in scene.objects:
            row[colors.index(thing.color)] += 1
            row[len(colors) + shapes.index(thing.shape)] += 1
            cell = int(thing.y / scene.image_size * GRID) * GRID + int(thing.x / scene.image_size * GRID)
            row[len(colors) + len(shapes) + cell] += 1
        row[-1] = scene.background
    return amounts_BK


def degrade(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Blurs a third of the images, adds noise to a third, and leaves a third; returns them and the strengths [B, 2].

    Strengths are shares of `MAX_BLUR` and `MAX_NOISE`.
    """
    num = len(images_BCHW)
    which_B = torch.randint(3, (num,))
    damage_B2 = torch.rand(num, 2) * F.one_hot(which_B, 3)[:, :2]
    blurred_BCHW = blur(images_BCHW, MAX_BLUR * damage_B2[:, 0])
    noise_B111 = (MAX_NOISE * damage_B2[:, 1])[:, None, None, None]
    return blurred_BCHW + noise_B111 * torch.randn_like(images_BCHW), damage_B2


def blur(images_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Applies a Gaussian blur with a standard deviation in pixels for each image; 0 leaves it as it is."""
    place_H = torch.arange(images_BCHW.shape[-1])
    distance_HH = (place_H[:, None] - place_H).float()
    weight_BHH = torch.exp(-0.5 * (distance_HH / sigma_B.clamp(min=1e-3)[:, None, None]) ** 2)
    weight_BHH /= weight_BHH.sum(dim=2, keepdim=True)
    return torch.einsum("bij,bcjk,blk->bcil", weight_BHH, images_BCHW, weight_BHH)


def _loss(said_BK: Tensor, looks_BK: Tensor, amounts_BK: Tensor) -> Tensor:
    """Returns the cross-entropy of the looks plus the squared error of all amounts, both summed over the targets."""
    of_looks = F.binary_cross_entropy_with_logits(said_BK[:, :_NUM_LOOKS], looks_BK)
    of_amounts = F.mse_loss(said_BK[:, _NUM_LOOKS:], amounts_BK)
    return _NUM_LOOKS * of_looks + _NUM_AMOUNTS * of_amounts


def main(arguments: Sequence[str]) -> None:
    """Trains, and writes the weights to the one file named."""
    assert len(arguments) == 1, "usage: python -m experiments.evaluation.metrics.train_features FILE"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    weights = train_feature_network().state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
