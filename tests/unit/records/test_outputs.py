"""Only what ecdit wrote, as it wrote it, is replaced; a file appears whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from experiments.errors import OutputError, StorageError
from experiments.records.outputs import MARKS, output_files
from tests.training_runs import files_no_larger_than


def write(path: Path, text: str) -> None:
    with output_files([path]) as (part,):
        part.write_text(text)


def test_what_we_wrote_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    for text in ("first", "second", "first"):
        write(path, text)
        assert path.read_text() == text
    assert sorted(os.listdir(path.parent)) == [MARKS, "table.csv"]


def test_the_marks_are_what_sha256sum_checks(tmp_path: Path) -> None:
    write(tmp_path / "table.csv", "first")
    subprocess.run(["sha256sum", "--check", "--strict", MARKS], cwd=tmp_path, check=True, capture_output=True)


def make_file(path: Path) -> None:
    path.write_text("mine")


def edit(path: Path) -> None:
    """Ours, with a note that its reader added."""
    write(path, "first")
    path.write_text("first, and mine")


def link_to_somebodys(path: Path) -> None:
    path.with_name("mine").write_text("mine")
    path.symlink_to("mine")


def link_to_ours(path: Path) -> None:
    """The link is somebody's, though what it leads to is ours."""
    write(path.with_name("elsewhere.csv"), "first")
    path.symlink_to("elsewhere.csv")


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("/mnt/not-mounted")


def name_of_another(path: Path) -> None:
    """A file with the content of ours, under a name that we did not write."""
    write(path.with_name("other.csv"), "first")
    path.write_text("first")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "place",
    [make_file, edit, Path.mkdir, os.mkfifo, link_to_somebodys, link_to_ours, link_to_nowhere, name_of_another],
)  # fmt: skip
def test_what_is_not_ours_is_refused_before_anything_is_written(tmp_path: Path, place) -> None:
    path, beside = tmp_path / "table.csv", tmp_path / "first.csv"
    place(path)
    before = {name: os.lstat(tmp_path / name) for name in sorted(os.listdir(tmp_path))}
    message = r"table\.csv is there already, .*Move it away, or name another place"
    with pytest.raises(OutputError, match=message), output_files([beside, path]):
        pytest.fail("nothing must be written")
    after = {name: os.lstat(tmp_path / name) for name in sorted(os.listdir(tmp_path))}
    assert {name: (state.st_ino, state.st_mtime_ns) for name, state in after.items()} == {
        name: (state.st_ino, state.st_mtime_ns) for name, state in before.items()
    }


def test_on_a_full_disk_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write(path, "first")
    with files_no_larger_than(1000), pytest.raises(StorageError, match=r"cannot write .*table\.csv: file too large"):
        write(path, "x" * 10_000)
    assert path.read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == [MARKS, "table.csv"]


def test_a_name_that_is_too_long_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"file name too long\. Choose a shorter name\."):
        write(tmp_path / ("x" * 300), "first")
