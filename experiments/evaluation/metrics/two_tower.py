"""The network in whose features real pictures are measured: one tower reads images, the other captions or classes.

Every prepared set of pixels has one of its own, which `train_two_tower.py` trains on the training split of the set
(`ecdit data features SET`). The tower of images is that of `features.py` with other weights: 64 features, which tell
captions apart and respond to blur and noise. A linear map of them is compared with what the tower of captions makes of
the pooled features that the set stores, or with the row of a class, by the cosine, as in CLIP (Radford et al., arXiv
2103.00020), whose network it is not: it knows the words of one set only.

Legend: B images, C channels, H, W height and width, F image features, U pooled features of a caption, D dimensions in
which images and captions are compared.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.config.features_record import WEIGHTS_FILE
from experiments.config.prepared_set import DataSetIndex
from experiments.data.scenes.features import NUM_FEATURES, FeatureNetwork
from experiments.errors import ConfigError

NUM_COMPARED = 64
HIDDEN_WIDTH = 256
DROPOUT = 0.3


class TwoTower(nn.Module):
    """Maps images [B, 3, H, W] in [-1, 1] and captions to vectors, which are near each other where they fit.

    Captions are pooled features [B, `pooled_width`]; where `num_classes` is given they are classes, int64 [B].
    """

    def __init__(self, pooled_width: int | None, num_classes: int | None) -> None:
        super().__init__()
        self.images = FeatureNetwork()
        self.compared = nn.Linear(NUM_FEATURES, NUM_COMPARED)
        self.captions = (
            _caption_tower(pooled_width or 0) if num_classes is None else nn.Embedding(num_classes, NUM_COMPARED)
        )

    @classmethod
    def of(cls, index: DataSetIndex) -> TwoTower:
        """Returns an untrained network for a set."""
        return cls(index.pooled_width, None if index.class_names is None else len(index.class_names))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Returns features [B, F] of images, float32."""
        features_BF: Tensor = self.images(images_BCHW.float().contiguous(memory_format=torch.channels_last))
        return features_BF

    def of_features(self, features_BF: Tensor) -> Tensor:
        """Returns the vectors [B, D] of length 1 that captions are compared with."""
        return F.normalize(self.compared(features_BF), dim=1)

    def of_captions(self, captions: Tensor) -> Tensor:
        """Returns the vectors [B, D] of length 1 of captions or classes."""
        given = captions.float() if captions.is_floating_point() else captions
        return F.normalize(self.captions(given), dim=1)


def _caption_tower(pooled_width: int) -> nn.Sequential:
    """Returns a small network whose inputs have the same spread, whichever encoder they come from."""
    return nn.Sequential(
        nn.BatchNorm1d(pooled_width, affine=False),
        nn.Dropout(DROPOUT),
        nn.Linear(pooled_width, HIDDEN_WIDTH),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN_WIDTH, NUM_COMPARED),
    )


def load_two_tower(folder: Path, index: DataSetIndex) -> TwoTower:
    """Returns the network of a set on the CPU, in evaluation mode.

    Raises `ConfigError` where the file does not hold the weights of such a network.
    """
    network, path = TwoTower.of(index), folder / WEIGHTS_FILE
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: other names or shapes
        raise ConfigError(
            f"{path} does not hold the network of this set.", f"Train it with: ecdit data features {folder}"
        ) from error
    return network.requires_grad_(False).eval()
