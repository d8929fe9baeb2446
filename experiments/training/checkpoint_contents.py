"""Checks that a checkpoint's description of its tensors is well formed and agrees with the tensors in its files.

Checksums show that nothing was damaged since a checkpoint was written, but not who wrote it: a stranger's `state.json`
can have valid checksums. Its types, and the shapes and types of the tensors, are therefore checked before anything is
computed from them. Only the headers of the tensor files are read here.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from experiments.records.record_types import BALANCE_LOSS
from experiments.text import printable, shortened
from experiments.training.power_profiles import WIDEST

LOSS = {"balance_loss": BALANCE_LOSS}
"""The entry of the loop's state that names the loss. A checkpoint without it is of a version that took the mean."""
Whole = Annotated[int, Field(ge=0, lt=2**63)]
EmaWidth = Annotated[float, Field(gt=0, le=WIDEST)]


class TensorHeader(NamedTuple):
    """The header of one tensor in a safetensors file; `dtype` is in the names of that format (`F32`)."""

    shape: tuple[int, ...]
    dtype: str


class _LoopState(BaseModel):
    """The part of the training loop's state that every reader of a checkpoint needs."""

    model_config = ConfigDict(strict=True)

    config_id: str
    images_seen: Whole
    ema_widths: list[EmaWidth] = []
    """The widths of the averages of `train.ema=power`."""
    router_state: dict[str, Any] = {}
    """The numbers of router states (`router_states.py`)."""


class _StateFile(BaseModel):
    """The content of `state.json` in the format that this version reads."""

    model_config = ConfigDict(strict=True)

    sha256: dict[str, str]
    shapes: dict[str, list[Whole]]
    stretches: Annotated[
        list[dict[str, Annotated[list[Whole], Field(min_length=2, max_length=2)]]], Field(min_length=1)
    ]
    state: _LoopState


def average_keys(widths: Sequence[float]) -> list[str]:
    """Returns the state under which each average is in `ema.safetensors`: none for the first, which may be the only."""
    return ["", *(f"{width:g}" for width in widths[1:])]


def tensor_key(name: str, state: str = "") -> str:
    """Returns the key of a parameter, or of one kind of its state, in the files of a checkpoint."""
    return f"{name}/{state}" if state else name


def tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """Returns the headers of all tensors by name. Raises `OSError`, and `ValueError` for any other file format."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")  # opening a FIFO would wait for ever
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            return {name: TensorHeader(tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def require_well_formed(content: Mapping[str, Any]) -> None:
    """Checks that `state.json` has all fields that are read, and that its shards hold every element exactly once.

    Raises `ValueError` with the first fault.
    """
    try:
        _StateFile.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = shortened(printable(".".join(map(str, first["loc"]))), 80)
        raise ValueError(f"{where}: {first['msg']}") from error
    for name, shape in content["shapes"].items():
        bounds = sorted(tuple(shard[name]) for shard in content["stretches"] if name in shard)
        reached = 0
        for start, stop in bounds:
            if start != reached or stop < start:
                break
            reached = stop
        if reached != math.prod(shape):
            raise ValueError(f"its shards do not hold all numbers of {printable(name)}")


def require_stretches(
    path: Path,
    stretches: Mapping[str, tuple[int, int]],
    shapes: Mapping[str, tuple[int, ...]],
    states: Sequence[str] = ("",),
) -> None:
    """Checks that the file holds fp32 elements of all `stretches`, flat or in the shape of the whole parameter.

    With `states` it must hold each of these of every parameter.

    Raises `ValueError` where it does not, and the errors of `tensor_headers`.
    """
    headers = tensor_headers(path)
    for (name, (start, stop)), state in product(stretches.items(), states):
        key = tensor_key(name, state)
        header = headers.get(key)
        if header is None:
            raise ValueError(f"{printable(key)} is not in it")
        fits = header.shape == (stop - start,) or (
            header.shape == shapes.get(name) and math.prod(header.shape) == stop - start
        )
        if header.dtype != "F32" or not fits:
            raise ValueError(
                f"{printable(key)} is {header.dtype} {list(header.shape)}, and state.json says {stop - start:,} "
                "numbers of F32"
            )
