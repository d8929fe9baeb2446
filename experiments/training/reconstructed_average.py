"""Makes an average of the weights of any width from the averages that a run with `train.ema=power` has stored.

Every checkpoint holds averages of two widths, and those of older checkpoints stay (`checkpoint_files.py`). A sum of
stored averages approximates an average of another width at the newest checkpoint. How well is known from the profiles
alone: widths whose profile would be off by more than `MAX_ERROR` are refused (EDM2, Karras et al. 2024,
arXiv 2312.02696, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from experiments.errors import CheckpointError, ConfigError
from experiments.records.run_folder import RunDir
from experiments.training.checkpoint import Checkpoint, DamagedCheckpointError, load_newest, open_checkpoint
from experiments.training.checkpoint_contents import average_keys
from experiments.training.checkpoint_list import complete_checkpoints, images_in_name, stored_averages
from experiments.training.power_profiles import WIDEST, PowerProfile, reconstruct

MAX_ERROR = 0.1
"""The largest distance of a reconstructed profile from the wanted one, relative to it. The weights are closer still,
because they change little between two checkpoints."""
SEARCH_STEPS = 10
"""The number of halvings with which the range of widths is searched that a refusal names."""


@dataclass(frozen=True)
class ReconstructedAverage(Checkpoint):
    """The newest checkpoint of a run, of which only the average can be read, in another width than the stored ones."""

    parts: list[tuple[Checkpoint, str, float]] = field(default_factory=list)
    """The checkpoint, state (`average_keys`) and factor of each stored average."""

    def read(self, file: str, name: str, start: int, stop: int, state: str = "") -> Tensor:
        """Reads the elements [start, stop) of the flattened parameter `name` of the average, fp32."""
        assert (file, state) == ("ema", ""), (file, state)
        total = torch.zeros(stop - start, dtype=torch.float64)  # factors of both signs cancel
        for checkpoint, key, factor in self.parts:
            total.add_(checkpoint.read(file, name, start, stop, key), alpha=factor)
        return total.float()


def require_widths(run_dir: RunDir, widths: Sequence[float], say: Callable[[str], None]) -> None:
    """Raises `ConfigError` where an average of one of `widths` cannot be made at the newest checkpoint of a run.

    Only the descriptions of the checkpoints are read. A run without a checkpoint is left to whoever loads it.
    """
    newest = load_newest(run_dir, run_dir.read_run().config_id, say, files=())
    if newest is not None:
        stored = _stored(run_dir, newest, (), say)
        for width in widths:
            _factors(run_dir, stored, width)


def reconstructed_average(
    run_dir: RunDir, newest: Checkpoint, width: float, say: Callable[[str], None]
) -> ReconstructedAverage:
    """Returns `newest`, the newest checkpoint of a run, with an average of this `width`.

    `say` is told of damaged averages, which are left out. Raises `ConfigError` where the average cannot be made, and
    `CheckpointError` where averages are of another model or cannot be read.
    """
    stored = _stored(run_dir, newest, ("ema",), say)
    factors = _factors(run_dir, stored, width)
    keyed = [(one, key) for one in stored for key in average_keys(one.ema_widths)]
    parts = [(one, key, factor) for (one, key), factor in zip(keyed, factors, strict=True) if factor != 0]
    return ReconstructedAverage(newest.path, newest.state, newest.shapes, newest.stretches, parts=parts)


def _stored(run_dir: RunDir, newest: Checkpoint, files: Sequence[str], say: Callable[[str], None]) -> list[Checkpoint]:
    """Returns what holds averages up to `newest`, oldest first, with intact `files`."""
    if not newest.ema_widths:
        raise ConfigError(
            f"{run_dir.path} was trained with train.ema=halflife, whose average has one width.",
            "Leave out --ema, or train with train.ema=power.",
        )
    # A checkpoint comes before older averages with its number of images, which are of a run that went on from before.
    paths = {images_in_name(path): path for path in (*stored_averages(run_dir), *complete_checkpoints(run_dir))}
    found = []
    for images_seen in sorted(images for images in paths if images < newest.images_seen):
        one = _opened(paths[images_seen], newest, files, say)
        found += [one] if one is not None else []
    return [*found, newest]


def _opened(path: Path, newest: Checkpoint, files: Sequence[str], say: Callable[[str], None]) -> Checkpoint | None:
    try:
        one = open_checkpoint(path, newest.state["config_id"], files)
    except DamagedCheckpointError as error:
        say(f"{error} Its averages are left out.")
        return None
    if one.shapes != newest.shapes:
        raise CheckpointError(f"{path} holds other parameters than {newest.path}.", "Move it away.")
    return one


def _factors(run_dir: RunDir, stored: Sequence[Checkpoint], width: float) -> list[float]:
    """Returns the factor of each stored average. Raises `ConfigError` where their sum is too far from this `width`."""
    profiles = [PowerProfile(one.images_seen, each) for one in stored for each in one.ema_widths]
    now = stored[-1].images_seen
    wanted = PowerProfile(now, width)
    if len(stored) == 1 and wanted not in profiles:
        raise ConfigError(
            f"{run_dir.path} has averages of one checkpoint only, of the widths {_listed(stored[-1].ema_widths)}: "
            f"--ema {width:g} cannot be made of them.",
            "Name one of these widths, or save more often: checkpoint.every_images.",
        )
    found = reconstruct(profiles, wanted)
    if found.error > MAX_ERROR:
        narrowest = math.ceil(1000 * _limit(profiles, now, min(stored[-1].ema_widths), 0.001)) / 1000
        widest = math.floor(1000 * _limit(profiles, now, max(stored[-1].ema_widths), WIDEST)) / 1000
        raise ConfigError(
            f"--ema {width:g} cannot be made of the averages of {len(stored)} checkpoints in {run_dir.path}: their sum "
            f"would be off by {found.error:.0%}, and at most {MAX_ERROR:.0%} is allowed.",
            f"Widths from {narrowest:g} to {widest:g} can; more checkpoints (checkpoint.every_images) allow more.",
        )
    return [float(factor) for factor in found.factors_N]


def _limit(profiles: Sequence[PowerProfile], now: int, inside: float, outside: float) -> float:
    """Returns the width between one that can be made and one that cannot, up to which the error is small enough."""
    for _ in range(SEARCH_STEPS):
        middle = (inside + outside) / 2
        if reconstruct(profiles, PowerProfile(now, middle)).error <= MAX_ERROR:
            inside = middle
        else:
            outside = middle
    return inside


def _listed(widths: Sequence[float]) -> str:
    return " and ".join(f"{width:g}" for width in widths)
