"""Trains the two towers of a set and writes them to its folder: `ecdit data features SET`.

An image and its caption are to be nearer than any other pair of the batch (InfoNCE in both directions, arXiv
2103.00020, figure 3); equal captions are no others. A sixth of the images are blurred and a sixth noisy, as all are in
`train_features.py`, and the features also have to say by how much. Nothing is drawn but from a fixed seed, in a fixed
order, on one thread of the CPU, so that training twice on one machine gives the same bytes. Other machines round
differently, which is why values carry the checksum of the weights.

Legend: B images, C channels, H, W height and width, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from experiments.config.features_record import (
    RECIPE_VERSION,
    RECORD_FILE,
    WEIGHTS_FILE,
    FeaturesRecord,
    read_features,
    require_pixels,
)
from experiments.config.prepared_set import DataSetIndex
from experiments.config.prepared_settings import settings_of
from experiments.config.schema import DataConfig
from experiments.data.order import shuffled
from experiments.data.scenes.features import NUM_FEATURES, resized
from experiments.data.sources.pixels import Pixels
from experiments.errors import ConfigError
from experiments.evaluation.metrics.caption_pool import CaptionPool
from experiments.evaluation.metrics.train_features import degrade
from experiments.evaluation.metrics.two_tower import TwoTower
from experiments.inputs import sha256_of_files
from experiments.records.storage import replace_atomically, write_json_atomic

BATCH_IMAGES = 192
NUM_STEPS = 600
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
MAX_SHIFT = 2
"""The most pixels by which the images of a batch are moved, at the edges of which they are continued."""
DAMAGE_WEIGHT = 2.0
"""The weight of the squared error of the strengths of blur and noise."""
FIRST_SCALE = 10.0
"""The factor of the cosines at first; it is trained too."""
SEED = 0


def opened_pixels(folder: Path, index: DataSetIndex) -> Pixels:
    """Opens a set of pixels outside of a run."""
    return Pixels(DataConfig(name="pixels", path=str(folder), **settings_of(index)))


def make_features(folder: Path, show: Callable[[float, float], None]) -> tuple[FeaturesRecord, bool]:
    """Trains the network of a set where it has none that fits, and returns its record and whether it was trained.

    Raises `ConfigError` where the set is not one of pixels, is damaged, or is too small.
    """
    index = require_pixels(folder)
    source = opened_pixels(folder, index)
    source.check()
    num_images = index.num_images("train")
    if num_images < BATCH_IMAGES:
        raise ConfigError(
            f"{folder} has {num_images} training images, fewer than the {BATCH_IMAGES} of a batch.",
            "Prepare more images: the network of features learns from them.",
        )
    pools = {split: CaptionPool(source, split) for split in ("validation", "held_out") if index.num_images(split)}
    try:
        return read_features(folder, index.fingerprint), False
    except ConfigError:  # there is none, or it is of another set or version: it is replaced
        network = train_two_tower(source, NUM_STEPS, show)
    accuracy = {split: pool.of_true_images(network, range(pool.num_rows)) for split, pool in pools.items()}
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    replace_atomically(folder / WEIGHTS_FILE, save(tensors))
    record = FeaturesRecord(
        recipe_version=RECIPE_VERSION, fingerprint=index.fingerprint, sha256=sha256_of_files(folder / WEIGHTS_FILE),
        torch_version=torch.__version__, num_training_images=num_images, **accuracy,
    )  # fmt: skip
    write_json_atomic(folder / RECORD_FILE, record.model_dump(exclude_none=True))
    return record, True


def train_two_tower(
    source: Pixels, num_steps: int, show: Callable[[float, float], None] = lambda done, total: None
) -> TwoTower:
    """Returns a network that is trained on the training split of a set, in evaluation mode."""
    with torch.random.fork_rng(devices=[]), _one_deterministic_thread():
        torch.manual_seed(SEED)
        network = TwoTower.of(source.index)
        read_damage, scale = nn.Linear(NUM_FEATURES, 2), nn.Parameter(torch.tensor(FIRST_SCALE).log())
        parameters = [*network.parameters(), *read_damage.parameters(), scale]
        optimizer = torch.optim.AdamW(parameters, lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=num_steps)
        for step in range(num_steps):
            images_BCHW, captions = _batch(source, step)
            images_BCHW, damage_B2 = _half_degraded(images_BCHW)
            features_BF = network.features(images_BCHW)
            loss = _pairing_loss(network, features_BF, captions, scale.exp())
            loss = loss + DAMAGE_WEIGHT * F.mse_loss(read_damage(features_BF), damage_B2)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            show(step + 1, num_steps)
        return network.eval()


def _batch(source: Pixels, step: int) -> tuple[Tensor, Tensor]:
    """Returns images of a batch, moved and mirrored at random, and their captions or classes."""
    places = np.arange(step * BATCH_IMAGES, (step + 1) * BATCH_IMAGES)
    rows = shuffled(SEED, places, source.num_images("train")).tolist()
    images_BCHW = resized(source.stored("train", rows))
    mirrored_B = source.may_be_mirrored("train", rows) & (torch.rand(len(rows)) < 0.5)
    images_BCHW[mirrored_B] = images_BCHW[mirrored_B].flip(-1)
    size = images_BCHW.shape[-1]
    top, left = torch.randint(2 * MAX_SHIFT + 1, (2,)).tolist()
    padded_BCHW = F.pad(images_BCHW, [MAX_SHIFT] * 4, mode="replicate")
    captions = (
        source.pooled_features("train", rows) if source.index.class_names is None
        else torch.tensor(source.labels("train", rows))
    )  # fmt: skip
    return padded_BCHW[:, :, top : top + size, left : left + size], captions


def _half_degraded(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the images, of which a sixth are blurred and a sixth noisy, and the strengths [B, 2]."""
    half = len(images_BCHW) // 2
    degraded_BCHW, damage_B2 = degrade(images_BCHW[:half])
    none_B2 = torch.zeros(len(images_BCHW) - half, 2)
    return torch.cat([degraded_BCHW, images_BCHW[half:]]), torch.cat([damage_B2, none_B2])


def _pairing_loss(network: TwoTower, features_BF: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """Returns the mean of the cross-entropies of finding each image's caption and each caption's image."""
    similarity_BB = scale * network.of_features(features_BF) @ network.of_captions(captions).T
    flat_BU = captions.view(len(captions), -1)
    is_equal_BB = (flat_BU[:, None] == flat_BU[None]).all(dim=2)
    is_equal_BB.fill_diagonal_(False)
    similarity_BB = similarity_BB.masked_fill(is_equal_BB, -torch.inf)
    own_B = torch.arange(len(captions))
    return (F.cross_entropy(similarity_BB, own_B) + F.cross_entropy(similarity_BB.T, own_B)) / 2


@contextmanager
def _one_deterministic_thread() -> Iterator[None]:
    """Runs on one thread with deterministic algorithms, and restores both settings."""
    num_threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(was_deterministic)
