"""Refuses options that a command would ignore because of the other options that are given."""

from __future__ import annotations

from collections.abc import Mapping

WITHOUT_DEVICE = "is about the accelerator of a plan, and no --device is given"
ADD_DEVICE = "Add --device NAME, or leave it out."


def refuse_ignored(given: Mapping[str, bool], because: str, way_out: str) -> None:
    """Raises `EcditError` for the first option that was given, and that the command ignores.

    `given` says by the name of each option whether it was given. In the message `because` follows the name, and
    `way_out` is the hint.
    """
    from experiments.errors import EcditError

    for option, is_given in given.items():
        if is_given:
            raise EcditError(f"{option} {because}.", way_out)
