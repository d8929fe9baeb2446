"""Rounds numbers of settings to those that fit others: multiples, divisors and decimals of a proposed value."""

from __future__ import annotations

import math


def next_multiple(value: int, of: int) -> int:
    """Returns the smallest multiple of `of` that is not below `value`."""
    return math.ceil(value / of) * of


def rounded_up(value: float) -> str:
    """Returns `value` rounded up to four decimals, as text."""
    return f"{math.ceil(value * 10_000) / 10_000:g}"


def divisors(number: int, limit: int) -> list[int]:
    """Returns the divisors of `number` up to `limit` in order. The work grows with the square root of `number`."""
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    both = {*small, *(number // each for each in small)}
    return sorted(each for each in both if each <= limit)
