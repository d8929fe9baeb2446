"""Large pages, and memory that a process keeps: asked for by the fast path alone, unless the environment says no."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.overrides import load_config
from experiments.training.host_memory import prefer_large_pages


@pytest.mark.parametrize(("implementation", "expected"), [("fast", "1"), ("reference", "0")])
def test_large_pages_are_asked_for_unless_the_reference_or_the_environment_says_no(
    implementation: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([f"train.implementation={implementation}"])
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "mine")
    prefer_large_pages(config)
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "mine"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    prefer_large_pages(config)
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == expected


ADVISED = """
import torch
from experiments.config.overrides import load_config
from experiments.training.host_memory import prefer_large_pages
prefer_large_pages(load_config(["train.implementation=IMPLEMENTATION"]))
tensor, inside = torch.ones(2**24), False
address = tensor.data_ptr() + 2**22
for line in open("/proc/self/smaps"):
    head = line.split()[0]
    if "-" in head and ":" not in head:
        first, last = (int(end, 16) for end in head.split("-"))
        inside = first <= address < last
    elif inside and head == "VmFlags:":
        print("hg" in line.split())
"""


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without large pages")
@pytest.mark.parametrize(("implementation", "advised"), [("fast", True), ("reference", False)])
def test_torch_hears_of_large_pages_after_everything_is_imported(implementation: str, advised: bool) -> None:
    program = ADVISED.replace("IMPLEMENTATION", implementation)
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.split() == [str(advised)]


FAULTS = """
import resource
import torch
from experiments.config.overrides import load_config
from experiments.training.host_memory import keep_freed_memory
keep_freed_memory(load_config(["train.implementation=IMPLEMENTATION"]))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(2**24)  # 64 MiB, let go at once; the first few find no hole of their size
before = faults()
for _ in range(8):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library without glibc's mallopt")
@pytest.mark.parametrize(
    ("implementation", "chosen", "kept"),
    [("fast", {}, True), ("reference", {}, False), ("fast", {"MALLOC_MMAP_MAX_": "65536"}, False)],
)
def test_freed_memory_is_kept_for_the_next_tensor(implementation: str, chosen: dict[str, str], kept: bool) -> None:
    """Eight tensors of 64 MiB in turn, after others: 8 x 16,384 faults of 4 KiB where each is new memory, else none."""
    program = FAULTS.replace("IMPLEMENTATION", implementation)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    environment = {**plain, **chosen, "THP_MEM_ALLOC_ENABLE": "0"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert (int(ran.stdout) < 1000) is kept
