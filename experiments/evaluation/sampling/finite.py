"""Rejects NaN and infinite numbers where they first appear: in weights that are loaded, and in images that are judged.

A run that diverged, or weights from elsewhere, may hold NaN. Measurements on them mean nothing, and would fail later
with an error that does not name the cause.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from experiments.errors import CheckpointError, RunFailedError
from experiments.text import agreeing, printable


def require_finite_weights(named: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raises `CheckpointError` that names the first tensor with NaN or infinite numbers, if there is one."""
    for name, tensor in named:
        finite = tensor.isfinite()
        if not finite.all():
            num_bad = tensor.numel() - int(finite.sum())
            raise CheckpointError(
                f"The weights in {where} are not finite: {num_bad:,} of the {tensor.numel():,} numbers of "
                f"{printable(name)} are NaN or infinite.",
                "The run diverged, or the file is damaged: use another checkpoint, or train it anew.",
            )


def require_finite_images(images_BCHW: Tensor) -> None:
    """Raises `RunFailedError` where a pixel is not finite."""
    finite_B = images_BCHW.flatten(1).isfinite().all(dim=1)
    if not finite_B.all():
        num_bad = len(finite_B) - int(finite_B.sum())
        raise RunFailedError(
            f"{num_bad} of {len(finite_B)} images {agreeing(num_bad, 'is', 'are')} not finite: "
            f"{agreeing(num_bad, 'it holds', 'they hold')} NaN or infinite pixels.",
            "The weights have diverged, or the guidance scale is too large for this model.",
        )
