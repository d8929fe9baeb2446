"""Every way in which an allocation fails is one line with its size, and no other error is taken for one."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.inputs import MAX_ROWS_BYTES, read_input
from experiments.out_of_memory import out_of_memory

TOO_MANY = 2**48


def allocate_with_torch() -> None:
    torch.empty(TOO_MANY)


def allocate_with_numpy() -> None:
    np.empty(TOO_MANY, dtype=np.float32)


def allocate_with_python() -> None:
    bytearray(TOO_MANY)


@pytest.mark.parametrize(
    ("allocate", "what"),
    [
        (allocate_with_torch, "an allocation of 1,048,576.00 GiB failed."),
        (allocate_with_numpy, "an allocation of 1,048,576.00 GiB failed."),
        (allocate_with_python, "an allocation failed."),
    ],
)
def test_a_real_failure_is_one_line_with_its_size(allocate, what: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    short = out_of_memory(caught.value)
    assert short is not None
    assert short.exit_code == 1
    assert short.message.startswith(f"Not enough memory: {what}")
    assert "\n" not in str(short)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."), "an allocation of 0.02 GiB"),
        (RuntimeError("unable to mmap 1073741824 bytes from file <x>: Cannot allocate memory (12)"), "of 1.00 GiB"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "an allocation"),
        (RuntimeError("std::bad_alloc"), "an allocation failed"),
        (RuntimeError("can't start new thread"), "an allocation failed"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "an allocation failed"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "an allocation failed"),
    ],
)
def test_the_words_of_every_library_are_known(error: Exception, what: str) -> None:
    short = out_of_memory(error)
    assert short is not None
    assert what in short.message


@pytest.mark.parametrize(
    "error", [RuntimeError("shape '[2]' is invalid"), OSError(errno.ENOENT, "No such file"), ImportError("no module")]
)
def test_another_error_keeps_its_traceback(error: Exception) -> None:
    assert out_of_memory(error) is None


def test_a_command_with_little_memory_ends_in_one_line_that_names_the_limit() -> None:
    """Not even the library fits that the command imports."""
    limit = 700 * 2**20
    ended = subprocess.run(
        [sys.executable, "-m", "ecdit_cli", "sample", "none"], capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    assert ended.returncode in (1, 2)
    assert ended.stderr.count("error: ") == 1


def test_reading_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """However much the largest file of its kind may have."""
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b"x" * (2**20 + 3))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, before[1]))
    try:
        assert len(read_input(path, MAX_ROWS_BYTES)) == 2**20 + 3
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 100 * 1024
