"""Memory that a process keeps, in large pages: the fast path alone does so, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import torch
from experiments.config.overrides import load_config
from experiments.training.host_memory import keep_freed_memory
keep_freed_memory(load_config(["train.implementation=IMPLEMENTATION"]))
tensor, inside, advised = torch.ones(2**24), False, None
address = tensor.data_ptr() + 2**22
for line in open("/proc/self/smaps"):
    head = line.split()[0]
    if "-" in head and ":" not in head:
        first, last = (int(end, 16) for end in head.split("-"))
        inside = first <= address < last
    elif inside and head == "VmFlags:":
        advised = "hg" in line.split()
del tensor
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(2**24)  # 64 MiB, let go at once; the first few find no hole of their size
before = faults()
for _ in range(8):
    torch.ones(2**24)
print(advised, faults() - before)
"""
CHOICES = [("fast", {}, True), ("reference", {}, False), ("fast", {"MALLOC_MMAP_MAX_": "65536"}, False)]
"""An implementation, what the environment says of the allocator, and whether memory is kept."""
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library without glibc's mallopt")


def printed(program: str, implementation: str, chosen: dict[str, str]) -> str:
    """What the program prints in an environment that says only what is `chosen` of the allocator."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    command = [sys.executable, "-c", program.replace("IMPLEMENTATION", implementation)]
    return subprocess.run(command, capture_output=True, text=True, env={**plain, **chosen}, check=True).stdout


@pytest.fixture(scope="module", params=CHOICES, ids=lambda choice: f"{choice[0]} {' '.join(choice[1])}".strip())
def found(request: pytest.FixtureRequest) -> tuple[str, int, bool]:
    """Returns whether a tensor is in large pages, the page faults of eight more, and whether memory is to be kept."""
    implementation, chosen, kept = request.param
    advised, faults = printed(PROGRAM, implementation, chosen).split()
    return advised, int(faults), kept


@needs_glibc
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without large pages")
def test_large_tensors_are_in_large_pages(found: tuple[str, int, bool]) -> None:
    advised, _, kept = found
    assert advised == str(kept)


@needs_glibc
def test_freed_memory_is_kept_for_the_next_tensor(found: tuple[str, int, bool]) -> None:
    """Eight tensors of 64 MiB in turn, after others: 8 x 16,384 faults of 4 KiB where each is new memory, else none."""
    _, faults, kept = found
    assert (faults < 1000) is kept


FORKED = """
import os
from experiments.config.overrides import load_config
from experiments.training.host_memory import keep_freed_memory
keep_freed_memory(load_config(["train.implementation=IMPLEMENTATION"]))
held = [bytes(2**20) for _ in range(256)]
child = os.fork()
if child == 0:
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@needs_glibc
def test_a_process_that_keeps_memory_can_be_forked() -> None:
    """Linux refuses to copy a heap with more addresses than the machine has memory."""
    assert printed(FORKED, "fast", {}).split() == ["0"]
