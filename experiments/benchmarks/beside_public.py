"""Measures training steps of our networks beside public ones, from a checkout that the user has; it imports no torch.

Each side runs in a process of its own (`training_side.py`), so that its peak memory and the seconds to its first step
are its own. The two processes take turns, a step each: a machine that slows down slows both, and a ratio is the median
of the ratios of neighbouring steps. The second table sums a step of each side by groups of operators.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from experiments.benchmarks.public_checkouts import Checkout
from experiments.benchmarks.public_networks import (
    MEMORY_LIMIT,
    OURS,
    PUBLIC,
    PUBLIC_NETWORKS,
    PublicNetwork,
    find_network,
    matching_config,
)
from experiments.environment import child_environment
from experiments.errors import EcditError, RunFailedError
from experiments.records.provenance import git_commit

Row = dict[str, Any]
SIDES = (OURS, PUBLIC)
WARM_UP_STEPS = 2
PROGRAM = "from experiments.benchmarks.training_side import serve; serve()"
SHORT_COMMIT = 7


@dataclass(frozen=True)
class PairTables:
    """The rows of both tables of `ecdit bench train --beside`."""

    pairs: list[Row]
    shares: list[Row]


class SideProcess:
    """A process with one side, which is asked one word at a time."""

    def __init__(self, request: Row, folder: Path) -> None:
        self.side, self.log = request["side"], folder / f"{request['side']}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(request)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=child_environment(),
            )  # fmt: skip

    def __enter__(self) -> SideProcess:
        """Returns the process, which has started already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process, which may be in the middle of a step when an error or an interrupt ends the command."""
        self.process.kill()
        self.process.communicate()

    def ask(self, word: str) -> Row:
        """Returns the answer. Raises `EcditError` for a mistake, and `RunFailedError` where the process ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and what it had to say can still be read
        line = self.process.stdout.readline()
        if not line:
            code, said = self.process.wait(), self.log.read_text(errors="replace").strip().splitlines()
            last = said[-1] if said else "it said nothing"
            raise RunFailedError(
                f"The process of the side {self.side!r} ended with code {code}: {last}.",
                "Where memory was short, use a smaller train.batch_images.",
            )
        answer: Row = json.loads(line)
        if "error" in answer:
            raise (EcditError if answer["is_mistake"] else RunFailedError)(answer["error"], answer["hint"])
        return answer


def bench_beside(
    beside: str | None,
    peer_path: Path | None,
    overrides: Sequence[str],
    steps: int,
    clock: Literal["wall", "cpu"],
    progress: Callable[[str, int], AbstractContextManager[Callable[[], None]]],
) -> PairTables:
    """Measures every variant of the network `beside`. Raises `EcditError` where an option is missing or unfit."""
    if beside is None:
        raise EcditError(
            f"--peer-path {peer_path} needs the network whose checkout it is.",
            f"Add --beside with one of: {', '.join(PUBLIC_NETWORKS)}.",
        )
    network = find_network(beside)
    if peer_path is None:
        raise EcditError(
            f"--beside {beside} needs a checkout of {network.repository}: --peer-path DIR.",
            f"Make one with: git clone https://github.com/{network.repository}.",
        )
    checkout = Checkout(network, peer_path)
    for variant in network.variants:
        matching_config(network, variant, overrides)  # a mistake is said before a process starts
    found = PairTables([], [])
    commit = git_commit(checkout.folder)
    with progress("steps side by side", len(network.variants) * (steps + WARM_UP_STEPS)) as advance:
        for number in range(len(network.variants)):
            request = {
                "network": beside, "variant": number, "overrides": list(overrides), "clock": clock,
                "peer_path": str(checkout.folder),
            }  # fmt: skip
            pair = _measure(network, number, request, steps, advance)
            found.pairs.append(pair.pairs[0] | {"peer_commit": commit and commit[:SHORT_COMMIT]})
            found.shares.extend(pair.shares)
    return found


def _measure(network: PublicNetwork, number: int, request: Row, steps: int, advance: Callable[[], None]) -> PairTables:
    """Measures one variant: first steps, steps by turns, peak memory, and at last the profile, which takes memory."""
    variant = network.variants[number]
    config = matching_config(network, variant, request["overrides"])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides, first = {}, {}
        for side in SIDES:  # one after the other, so that neither is slower for the other's start
            sides[side] = stack.enter_context(SideProcess({**request, "side": side}, folder))
            first[side] = sides[side].ask("first")
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for turn in range(-WARM_UP_STEPS, steps):
            for side in SIDES if turn % 2 else reversed(SIDES):
                taken = sides[side].ask("step")["seconds"]
                if turn >= 0:
                    seconds[side].append(taken)
            advance()
        gib = {side: sides[side].ask("peak")["gib"] for side in SIDES}
        shares = {side: sides[side].ask("shares")["seconds"] for side in SIDES}
    row = _row(variant.target, config.train.batch_images, first, seconds, gib)
    named = {"beside": variant.label, "repository": network.repository, "differs": variant.differs, "steps": steps}
    return PairTables([named | row], [{"beside": variant.label} | each for each in _share_rows(shares)])


def _row(target: float, batch_images: int, first: Row, seconds: dict[str, list[float]], gib: dict[str, float]) -> Row:
    ratio = statistics.median(theirs / ours for ours, theirs in zip(seconds[OURS], seconds[PUBLIC], strict=True))
    memory_ratio = gib[OURS] / gib[PUBLIC]
    return {
        "setting": first[OURS]["setting"],
        "images_per_second": batch_images / statistics.median(seconds[OURS]),
        "peer_images_per_second": batch_images / statistics.median(seconds[PUBLIC]),
        "ratio": ratio,
        "target": target,
        "is_met": ratio >= target,
        "peak_gib": gib[OURS],
        "peer_peak_gib": gib[PUBLIC],
        "memory_ratio": memory_ratio,
        "memory_limit": MEMORY_LIMIT,
        "memory_is_met": memory_ratio <= MEMORY_LIMIT,
        "first_step_seconds": first[OURS]["seconds"],
        "peer_first_step_seconds": first[PUBLIC]["seconds"],
        "params": first[OURS]["params"],
        "peer_params": first[PUBLIC]["params"],
    }


def _share_rows(shares: dict[str, dict[str, float]]) -> list[Row]:
    """Returns a row for each group of operators, with the seconds of both sides and their shares of a step."""
    totals = {side: sum(groups.values()) or 1.0 for side, groups in shares.items()}
    return [
        {
            "group": group,
            "seconds": ours,
            "share": ours / totals[OURS],
            "peer_seconds": shares[PUBLIC][group],
            "peer_share": shares[PUBLIC][group] / totals[PUBLIC],
        }
        for group, ours in shares[OURS].items()
    ]
