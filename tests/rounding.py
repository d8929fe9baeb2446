"""How far a fast implementation may be from the exact result: no further than rounding takes a plain one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close


def held_to_rounding(found: Tensor, exact: Tensor, plain: Tensor) -> None:
    """`exact` is in float64, `plain` in the type that `found` should have.

    In float32 within 1e-5 of the largest value; with 16 bits no further from `exact` than 1.1 times `plain`.
    """
    assert found.dtype == plain.dtype
    assert found.shape == exact.shape
    if found.dtype == torch.float32:
        assert_close(found.double(), exact, rtol=0, atol=1e-5 * max(1e-3, float(exact.abs().max())))
    else:
        lost, allowed = (float((each.double() - exact).norm()) for each in (found, plain))
        assert lost <= 1.1 * allowed + 1e-6 * float(exact.norm())
