"""The fixed network whose features `frechet-shapes` compares: four convolutions and one linear layer, 64 features.

Its weights ship with the package (`features.safetensors`, made by `train_features.py`), so that every machine measures
with the same network; rows that depend on it carry the first digits of the file's hash. It was trained to say what is
in a scene and how degraded the picture is, so that its features respond to both. `frechet.py` computes the distance
between two sets of features.

Legend: B images, C channels, H, W height and width, F features.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.config.metrics import FRECHET_FEATURES
from experiments.config.repa import FEATURE_CHANNELS, FEATURE_IMAGE_SIZE
from experiments.inputs import sha256_of_files

NUM_FEATURES = FRECHET_FEATURES
IMAGE_SIZE = FEATURE_IMAGE_SIZE
"""The size in pixels that images of other sizes are resized to."""
WEIGHTS = Path(__file__).with_name("features.safetensors")

_CHANNELS = (*FEATURE_CHANNELS, 32)
_FINAL_SIZE = 4


class FeatureNetwork(nn.Module):
    """Maps images [B, 3, H, W] in [-1, 1] to features [B, F], float32, of unit variance over the training renders."""

    def __init__(self) -> None:
        super().__init__()
        pairs = pairwise(_CHANNELS)
        self.convolutions = nn.Sequential(*(_convolution(*pair, first=pair[0] == 3) for pair in pairs))
        self.project = nn.Linear(_CHANNELS[-1] * _FINAL_SIZE**2, NUM_FEATURES)
        self.standardize = nn.BatchNorm1d(NUM_FEATURES, affine=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns features [B, F]."""
        maps_BCHW = self.convolutions(resized(images_BCHW))
        features_BF: Tensor = self.standardize(self.project(maps_BCHW.flatten(1)))
        return features_BF

    def map_of(self, images_BCHW: Tensor) -> Tensor:
        """Returns the output of the third convolution, 64 features at each of 8 x 8 places [B, 64, 8, 8]."""
        maps_BCHW: Tensor = self.convolutions[:3](resized(images_BCHW))
        return maps_BCHW


def resized(images_BCHW: Tensor) -> Tensor:
    """Returns the images in the size that the network reads."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if images_BCHW.shape[-2:] == size:
        return images_BCHW
    return F.interpolate(images_BCHW, size, mode="bilinear", antialias=True, align_corners=False)


def _convolution(num_in: int, num_out: int, first: bool) -> nn.Sequential:
    """Returns a 3 x 3 convolution that halves the size, except in the first layer."""
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, stride=1 if first else 2, padding=1, bias=False),
        nn.BatchNorm2d(num_out),
        nn.ReLU(),
    )


@lru_cache(maxsize=2)
def feature_network(device: torch.device) -> FeatureNetwork:
    """Returns the shipped network on `device`, in evaluation mode; it is loaded once."""
    network = FeatureNetwork()
    network.load_state_dict(load_file(WEIGHTS))
    network.requires_grad_(False).eval().to(device)
    return network


@torch.no_grad()
def features_of(images_BCHW: Tensor) -> Tensor:
    """Returns features [B, F] of images in [-1, 1] by the shipped network, float32, on the images' device."""
    images_BCHW = images_BCHW.float().contiguous(memory_format=torch.channels_last)
    features_BF: Tensor = feature_network(images_BCHW.device)(images_BCHW)
    return features_BF


@torch.no_grad()
def feature_map(images_BCHW: Tensor) -> Tensor:
    """Returns 64 features [B, 64, 8, 8] at each place of images in [-1, 1], by the shipped network, float32."""
    maps_BCHW: Tensor = feature_network(images_BCHW.device).map_of(images_BCHW.float())
    return maps_BCHW


@lru_cache(maxsize=1)
def weights_digest() -> str:
    """Returns the first 8 hexadecimal digits of the SHA-256 of the shipped weights."""
    return sha256_of_files(WEIGHTS)[:8]
