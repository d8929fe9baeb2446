"""Reads the tensors in a folder of `ecdit export-weights`, after comparing the files with their checksums.

Reading safetensors executes nothing. Whoever builds a model of them checks that they fit it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experiments.errors import CheckpointError
from experiments.inputs import sha256_of_files
from experiments.records.exported_record import EXPORT_AGAIN, Exported
from experiments.records.record_types import Precision
from experiments.records.run_folder import RunDir
from experiments.text import printable
from experiments.training.checkpoint_contents import tensor_headers

Result = TypeVar("Result")
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
STORED_AS: dict[Precision, str] = {"fp32": "F32", "bf16": "BF16"}
"""The names of the precisions in safetensors."""


def exported_shapes(folder: RunDir, exported: Exported) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor by name, from the headers of the files.

    Raises `CheckpointError` where the files hold no tensors, or tensors of another precision than `model.json` says.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in exported.files(folder):
        for name, header in _checked(path, tensor_headers).items():
            if header.dtype != STORED_AS[exported.precision]:
                raise CheckpointError(
                    f"{path} holds {printable(name)} as {header.dtype}; model.json says {exported.precision}.",
                    EXPORT_AGAIN,
                )
            shapes[name] = header.shape
    return shapes


def exported_tensors(folder: RunDir, exported: Exported) -> dict[str, Tensor]:
    """Returns every parameter by name. Raises `CheckpointError` for a file that is damaged, or not of safetensors."""
    tensors: dict[str, Tensor] = {}
    for path, digest in exported.files(folder).items():
        if _checked(path, sha256_of_files) != digest:
            raise CheckpointError(f"{path} is damaged: its checksum does not match.", EXPORT_AGAIN)
        tensors |= _checked(path, load_file)
    return tensors


def _checked(path: Path, read: Callable[[Path], Result]) -> Result:
    """Returns the result of `read`. Raises `CheckpointError` where it cannot read the file."""
    try:
        return read(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{printable(str(path))} cannot be read ({error}).", EXPORT_AGAIN) from error
