import os
from pathlib import Path

import pytest

from experiments.inputs import read_input


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a: 1\n")
    assert read_input(path) == b"a: 1\n"


def test_what_is_no_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, reason in ((fifo, "is a FIFO"), (tmp_path, "directory"), (Path("/dev/zero"), "is a device")):
        with pytest.raises(OSError, match=reason):
            read_input(path)
    with pytest.raises(FileNotFoundError):
        read_input(tmp_path / "missing")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20 + 1))
    with pytest.raises(OSError, match="is larger than 1 MiB"):
        read_input(path, max_bytes=2**20)
