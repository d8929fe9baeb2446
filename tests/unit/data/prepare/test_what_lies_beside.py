"""Files, tables and columns beside what is read: they are used, listed with a reason, or said to be unused."""

from __future__ import annotations

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
