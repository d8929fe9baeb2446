"""Shared parts of metrics whose networks the user provides: optional libraries, hashes of files, images as bytes.

Nothing is ever downloaded. The libraries are in the extra `ecdit[metrics]`, and are imported only when needed.

Legend: B images, C channels (3), H, W height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments import libraries
from experiments.errors import ConfigError
from experiments.evaluation.sampling.batches import as_pixels

INSTALL = libraries.install("metrics")
HASH_LENGTH = 12


def bytes_of(images_BCHW: Tensor) -> Tensor:
    """Returns uint8 [B, C, H, W] of images in [-1, 1]; that is the form in which images are saved."""
    assert images_BCHW.shape[1] == 3
    return as_pixels(images_BCHW).permute(0, 3, 1, 2)


def library(name: str) -> Any:
    """Imports a module of the extra. Raises `ConfigError` where it cannot be imported."""
    try:
        return libraries.library(name, "metrics")
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
        hint = "Install torchvision and torch of the same build: both for CPU, or both for the same CUDA."
        raise ConfigError(f"cannot import {name}: {first_line(error)}.", hint) from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or the name of its class, without the stop at the end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")


def short_hash(paths: Sequence[Path]) -> str:
    """Returns the start of the SHA-256 of the concatenated contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:HASH_LENGTH]
