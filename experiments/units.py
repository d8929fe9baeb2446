"""Numbers as people read them: parameters, FLOPs and seconds with three digits and a unit."""

from __future__ import annotations

from collections.abc import Sequence


def count(value: float) -> str:
    """Formats a number with three digits and K, M, B or T: `1.62B`."""
    return _scaled(value, ("", "K", "M", "B", "T"), "")


def flops(value: float) -> str:
    """Formats FLOPs with three digits and k, M, G, T, P or E: `44.2 MFLOP`."""
    return _scaled(value, ("", "k", "M", "G", "T", "P", "E"), " ") + "FLOP"


def duration(seconds: float) -> str:
    """Formats seconds as `42 s`, `4 min 10 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _scaled(value: float, prefixes: Sequence[str], space: str) -> str:
    index = 0
    while abs(value) >= 999.5 and index < len(prefixes) - 1:
        value, index = value / 1000, index + 1
    digits = f"{value:#.3g}".rstrip(".") if index and abs(value) < 999.5 else f"{value:.4g}"
    return f"{digits}{space}{prefixes[index]}"
