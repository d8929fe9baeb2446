"""A fault of the storage or of the machine ends the command, and does not leave a good row out for good."""

from __future__ import annotations

import errno
import io
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from experiments.data.prepare.encoding import Loaded, Sizing, load_row
from experiments.data.prepare.folders import list_folder
from experiments.data.prepare.path_tables import read_table
from experiments.data.prepare.source import open_source
from experiments.data.prepare.source_rows import PASSING_FAULTS, UnusableRowError, listed_as
from experiments.data.prepare.tars import open_tars
from experiments.data.prepare.text_columns import CAPTIONS
from experiments.errors import RunFailedError


@contextmanager
def without_descriptors() -> Iterator[None]:
    """Lets this process open no file."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(lowest)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Lets permissions hold for this process, also where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("number", sorted(PASSING_FAULTS), ids=errno.errorcode.__getitem__)
def test_a_fault_that_may_pass_says_that_the_same_command_continues(number: int) -> None:
    message = r"^b\\x1b\.png cannot be read: .* the same command continues; if it stays, replace this file"
    with pytest.raises(RunFailedError, match=message) as caught, listed_as("b\x1b.png"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.EFBIG])
def test_a_fault_of_the_file_is_listed(number: int) -> None:
    with pytest.raises(UnusableRowError), listed_as("a.png"):
        raise OSError(number, os.strerror(number))


def test_an_image_that_cannot_be_opened_for_want_of_descriptors_is_not_left_out(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    (tmp_path / "a.txt").write_text("a cat")
    rows = open_source(str(tmp_path), None, None, None, None)
    with without_descriptors(), pytest.raises(RunFailedError, match=r"^a\.png cannot be read: too many open files\."):
        load_row(rows, 0, Sizing(8))
    assert isinstance(load_row(rows, 0, Sizing(8)), Loaded)


def test_a_folder_that_cannot_be_listed_for_want_of_descriptors_is_not_left_out(tmp_path: Path) -> None:
    with without_descriptors(), pytest.raises(RunFailedError, match="cannot be read: too many open files"):
        list_folder(tmp_path)
    assert list_folder(tmp_path) == ([], [])


def read(folder: Path, name: str) -> None:
    if name.endswith(".tar"):
        open_tars(str(folder), [folder / name], None, None)
    else:
        read_table(folder, name, None, None, CAPTIONS)


@pytest.mark.parametrize("name", ["a.tar", "captions.csv", "captions.jsonl", "captions.parquet"])
def test_a_file_that_cannot_be_opened_for_want_of_descriptors_ends_the_command(name: str, tmp_path: Path) -> None:
    """A table that cannot be read is otherwise passed over, as others may have the captions."""
    (tmp_path / name).write_bytes(b"")
    with without_descriptors(), pytest.raises(RunFailedError, match=rf"{name} cannot be read: .*the same command"):
        read(tmp_path, name)
