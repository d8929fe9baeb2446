"""What a run says of the process that it is."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from experiments.training.description import peak_memory_gib, resident_peak_bytes

LINUX = "Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t    2096 kB\nVmRSS:\t    2000 kB\nThreads:\t1\n"
GVISOR = "Name:\tpython\nState:\tR (running)\nVmSize:\t 9000 kB\nVmRSS:\t    2000 kB\nThreads:\t1\n"


@pytest.mark.parametrize(("status", "expected"), [(LINUX, 2096 * 1024), (GVISOR, None), ("", None)])
def test_the_peak_is_read_where_the_kernel_tells_it(status: str, expected: int | None) -> None:
    assert resident_peak_bytes(status) == expected


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux only")
def test_the_status_of_this_process_is_understood() -> None:
    status = Path("/proc/self/status").read_text()
    assert (resident_peak_bytes(status) is None) == ("VmHWM" not in status)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the peak is that of the accelerator")
def test_the_peak_holds_what_this_process_has_now() -> None:
    assert 0.9 * psutil.Process().memory_info().rss < peak_memory_gib() * 2**30 < psutil.virtual_memory().total
