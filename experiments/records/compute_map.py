"""Stores generated images with the number of experts that processed each of their tokens (EC-DIT, figure 6).

The map is a file of arrays, which figures read without torch. `experiments/evaluation` fills it.

Legend: B images, H rows, W columns, K routed layers, N calls of the model along the sampler's path, T tokens.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.errors import RecordError
from experiments.records.storage import storage_errors

MADE_BY = "ecdit evaluate RUN --metrics routing --again"
"""The command that makes a map. Without `--again` it makes none where the values are recorded already."""
FAULTS = (
    OSError, ValueError, KeyError, EOFError, IndexError, TypeError, NotImplementedError, RuntimeError, MemoryError,
    SyntaxError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""The errors of numpy and zipfile for a damaged file: each is that of damage in another place."""


@dataclass(frozen=True)
class ComputeMap:
    """Holds images uint8 [B, H, W, 3], experts of the conditional branch uint8 [B, K, N, T], times [N], layers [K]."""

    captions: tuple[str, ...]
    images_BHWC: NDArray[np.uint8]
    experts_BKNT: NDArray[np.uint8]
    times_N: NDArray[np.float32]
    layers_K: NDArray[np.int64]
    num_experts: int
    images_seen: int

    @property
    def mean_BT(self) -> NDArray[np.float64]:
        """Returns the mean experts per token over routed layers and times, [B, T]."""
        mean: NDArray[np.float64] = self.experts_BKNT.mean(axis=(1, 2), dtype=np.float64)
        return mean

    def save(self, path: Path) -> None:
        """Writes the map to `path`. Raises `StorageError` where that fails."""
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(
                path,
                captions=np.array(self.captions),
                images=self.images_BHWC,
                experts=self.experts_BKNT,
                times=self.times_N,
                layers=self.layers_K,
                about=np.array([self.num_experts, self.images_seen]),
            )

    @classmethod
    def load(cls, path: Path) -> ComputeMap:
        """Reads a map without unpickling, which could run code. Raises `RecordError` for a missing or damaged file."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                about = arrays["about"]
                return cls(
                    captions=tuple(str(caption) for caption in arrays["captions"]),
                    images_BHWC=arrays["images"],
                    experts_BKNT=arrays["experts"],
                    times_N=arrays["times"],
                    layers_K=arrays["layers"],
                    num_experts=int(about[0]),
                    images_seen=int(about[1]),
                )
        except FileNotFoundError as error:
            raise RecordError(f"{path} does not exist.", f"Make it with: {MADE_BY}") from error
        except FAULTS as error:
            raise RecordError(f"{path} is damaged ({error}).", f"Make it again with: {MADE_BY}") from error
