"""The weights of soft MoE (`soft_moe.py`), which mix tokens into slots and slots into tokens.

Legend: B images, T tokens of an image, S slots of all experts for an image.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Mixture(NamedTuple):
    """Holds the weights that mix the tokens of each image into slots, and the results of the slots into tokens.

    dispatch_BTS: float32, sums to 1 over tokens. combine_BTS: float32, sums to 1 over slots. Both are None once they
    are applied, as they would otherwise keep memory until the end of a step. num_slots: B S.
    """

    dispatch_BTS: Tensor | None
    combine_BTS: Tensor | None
    num_slots: int

    def applied(self) -> Mixture:
        """Returns the mixture without its weights, for the statistics."""
        return Mixture(None, None, self.num_slots)
