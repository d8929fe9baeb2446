"""Files, tables and columns beside what is read: they are used, listed with a reason, or said to be unused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from experiments.data.prepare.request import Request
from experiments.data.prepare.source import open_source
from experiments.data.prepare.text_columns import LABELS
from experiments.errors import ConfigError
from tests.real_images import need_data_extra
from tests.unit.data.prepare.test_sources import PNG, open_rows, rows_of, write, write_tar

need_data_extra()
Make = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def packed(folder: Path, files: Mapping[str, bytes]) -> Path:
    return write_tar(folder / "part.tar", files)


def pictures(number: int) -> dict[str, bytes]:
    return {f"{place:03d}.png": PNG for place in range(number)}


def write_parquet(path: Path, columns: Mapping[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(dict(columns)), path)
    return path


def embedded(*names: str) -> pa.Array:
    """A column of images, as `datasets` stores them."""
    return pa.array([{"bytes": PNG, "path": name} for name in names])


def short(listed: Mapping[str, str]) -> dict[str, str]:
    """Reasons by the names of files alone, which are the same in a folder and in a tar."""
    return {Path(name).name: reason for name, reason in listed.items()}


def classes(source: Path, column: str | None = None) -> tuple[list[str | None], tuple[str, ...]]:
    """The labels of all rows, and what is said of the source."""
    rows = open_source(str(source), None, None, None, column, LABELS)
    return [rows.rows.text(number) for number in range(len(rows))], rows.notes


@pytest.mark.parametrize("make", [write, packed])
def test_an_image_with_two_captions_of_one_ending_is_listed(make: Make, tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.txt": b"a cat", "a.TXT": b"a dog", "b.png": PNG, "b.txt": b"a bird", "b.json": b"{}"}
    used, listed = rows_of(make(tmp_path / "source", files | {"b.JSON": b"{}"}))  # only .txt is read
    assert used == {"b.png": "a bird"}
    assert short(listed) == {"a.png": "it has two captions with the ending .txt"}


def test_a_caption_that_was_appended_to_a_tar_is_not_passed_over(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "part.tar", {"a.png": PNG, "a.txt": b"a cat", "b.png": PNG, "b.txt": b"a bird"})
    with tarfile.open(path, "a") as tar:
        entry = tarfile.TarInfo("a.txt")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"a dog"))
    used, listed = rows_of(path)
    assert used == {"b.png": "a bird"}
    assert short(listed) == {"a.png": "it has two captions with the ending .txt"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"caption": ["one"]}, {"caption": ["two"], "__index_level_0__": [7]}),
        ({"caption": ["one"], "__index_level_0__": [7]}, {"caption": ["two"]}),
        ({"caption": ["one"], "tags": pa.nulls(1)}, {"caption": ["two"], "tags": [["a", "b"]]}),
    ],
)
def test_files_of_parquet_need_not_have_the_same_columns(
    first: dict[str, object], second: dict[str, object], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "s" / "0.parquet", {"image": embedded("0.png")} | first)
    write_parquet(tmp_path / "s" / "1.parquet", {"image": embedded("1.png")} | second)
    assert rows_of(tmp_path / "s") == ({"0.png": "one", "1.png": "two"}, {})


def test_captions_that_are_all_missing_in_the_first_file_of_parquet_are_read_in_the_next(tmp_path: Path) -> None:
    write_parquet(tmp_path / "s" / "0.parquet", {"image": embedded("0.png"), "caption": pa.nulls(1)})
    write_parquet(tmp_path / "s" / "1.parquet", {"image": embedded("1.png"), "caption": ["two"]})
    assert rows_of(tmp_path / "s") == ({"1.png": "two"}, {"0.png": "no caption"})


def test_files_of_parquet_that_do_not_fit_are_named_with_their_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "s" / "0.parquet", {"image": embedded("0.png"), "caption": ["one"], "size": [1]})
    sizes = pa.array([{"width": 1}])
    write_parquet(tmp_path / "s" / "1.parquet", {"image": embedded("1.png"), "caption": ["two"], "size": sizes})
    with pytest.raises(ConfigError) as caught:
        open_rows(tmp_path / "s")
    message = "The column 'size' is int64 in 0.parquet, and struct<width: int64> in 1.parquet."
    assert message in str(caught.value)


@pytest.mark.parametrize("make", [write, packed])
def test_a_key_of_json_is_looked_for_beyond_the_first_files(make: Make, tmp_path: Path) -> None:
    files = pictures(70) | {f"{place:03d}.json": b'{"width": 5}' for place in range(69)}
    used, listed = rows_of(make(tmp_path / "late", files | {"069.json": b'{"text": "late"}'}))
    assert (used, len(listed)) == ({"069.png": "late"}, 69)
    source = make(tmp_path / "none", files | {"069.json": b"{"})
    with pytest.raises(
        ConfigError, match=r"no captions: the keys in the JSON files beside images are width\. Name the "
    ):
        open_rows(source)
    assert len(rows_of(source, caption_column="json.width")[0]) == 69


@pytest.mark.parametrize("make", [write, packed])
def test_the_ending_of_captions_is_that_of_most_images(make: Make, tmp_path: Path) -> None:
    files = pictures(4) | {f"00{place}.json": b'{"caption": "most"}' for place in range(3)}
    used, listed = rows_of(make(tmp_path / "json", files | {"003.txt": b"a note"}))
    assert used == dict.fromkeys(("000.png", "001.png", "002.png"), "most")
    assert short(listed) == {"003.png": "it has no .json, which is the ending that is used, but .txt"}
    halves = {"000.txt": b"x", "001.txt": b"x", "002.caption": b"y", "003.caption": b"y"}
    used, listed = rows_of(make(tmp_path / "halves", pictures(4) | halves))
    assert list(used) == ["000.png", "001.png"]
    assert set(listed.values()) == {"it has no .txt, which is the ending that is used, but .caption"}


@pytest.mark.parametrize("make", [write, packed])
def test_json_that_describes_images_is_no_caption_and_changes_no_set(make: Make, tmp_path: Path) -> None:
    """As img2dataset writes it, where a caption is missing."""
    files = pictures(3) | {"000.txt": b"zero", "001.txt": b"one"}
    described = {f"00{place}.json": b'{"width": 5}' for place in range(3)}
    plain, source = make(tmp_path / "plain", files), make(tmp_path / "described", files | described)
    used, listed = rows_of(source)
    assert used == {"000.png": "zero", "001.png": "one"}
    assert short(listed) == {"002.png": "it has no .txt, which is the ending that is used, but .json"}
    assert (len(open_rows(source)), open_rows(source).sample_sha256()) == (3, open_rows(plain).sample_sha256())


@pytest.mark.parametrize(("split", "subset", "option"), [("train", None, "--split"), (None, "plain", "--subset")])
def test_splits_and_subsets_are_for_the_hub_alone(
    split: str | None, subset: str | None, option: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "source", {"a.png": PNG, "a.txt": b"a cat"})
    tar = write_tar(tmp_path / "part.tar", {"a.png": PNG, "a.txt": b"a cat"})
    for source in (folder, tar):
        with pytest.raises(ConfigError) as caught:
            open_source(str(source), split, subset, None, None)
        message = f"{option} is for data sets of the Hub, and SOURCE {source} is a path. Leave it out."
        assert str(caught.value) == message


def test_a_request_without_a_split_is_stored_as_before() -> None:
    requests = [Request("s", text="static", split=split) for split in (None, "train", "test")]
    assert [request.identity()["split"] for request in requests] == ["train", "train", "test"]
