"""Freed memory is kept on glibc, and left to the user's own choice."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from experiments.training.allocator import keep_freed_memory
from tests.training_runs import environment

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
FAULTS = """
import resource, sys, torch
from experiments.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory({})
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@on_glibc
def test_the_same_pages_serve_again() -> None:
    def faults(choice: str) -> int:
        command = [sys.executable, "-c", FAULTS, choice]
        return int(subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout)

    assert faults("keep") < 0.1 * faults("leave")


@pytest.mark.parametrize(
    "theirs",
    [{"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, {"LD_PRELOAD": "libjemalloc.so.2"}],
)
def test_a_user_who_chose_is_left_alone(theirs: dict[str, str]) -> None:
    assert keep_freed_memory(theirs) is False
