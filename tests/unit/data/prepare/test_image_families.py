"""Rows of one image are trained on or validated with together, whatever the table, and however its path is spelt."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from experiments.data.prepare import image_tables
from experiments.data.prepare.image_families import Families, families_of_images
from experiments.data.prepare.job import prepare
from experiments.data.prepare.request import Request
from experiments.data.prepare.shards import deal_rows
from experiments.data.prepare.source import SourceRows, open_source
from experiments.errors import ConfigError
from tests.real_images import tensors_of

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.csv", "data.jsonl", "train.parquet", "struct")
"""The names of tables of paths; the struct is the column in which `datasets` stores images."""
NAMES = tuple(f"{number}.png" for number in range(12))
PATHS = tuple(spelling for name in NAMES for spelling in (name, f"./{name}", f"sub/../{name}"))
PNG = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PNG, "PNG")


def written(kind: str, folder: Path, paths: Sequence[str], column: str = "caption") -> Path:
    """A folder of images with a table, or the table itself where it holds structs; each row has a text of its own."""
    folder.mkdir(parents=True)
    for path in paths:
        (folder / Path(path).name).write_bytes(PNG.getvalue())
    texts = [f"a cat of class {number % 3}" for number in range(len(paths))]
    if kind == "struct":
        pytest.importorskip("datasets", reason="datasets is of the extra ecdit[data]")
        images = pa.array(
            [{"bytes": None, "path": path} for path in paths], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        parquet.write_table(pa.table({"image": images, column: texts}), folder / "part.parquet")
        return folder / "part.parquet"
    rows = [{"file_name": path, column: text} for path, text in zip(paths, texts, strict=True)]
    if kind.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), folder / kind)
    elif kind.endswith(".jsonl"):
        (folder / kind).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with (folder / kind).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", column])
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import datasets
    except ModuleNotFoundError:
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def opened(source: Path) -> SourceRows:
    return open_source(str(source), None, None, None, None)


def rows_by_split(source: SourceRows, bad: frozenset[int] = frozenset(), **settings: int) -> dict[str, list[int]]:
    tasks = deal_rows(Request("s", text="static", **settings), source, lambda row: row not in bad)  # type: ignore[arg-type]
    found: dict[str, list[int]] = {"train": [], "validation": []}
    for task in tasks:
        found[task.split] += task.rows
    return found


@pytest.mark.parametrize("kind", TABLES)
def test_the_rows_of_one_image_are_on_one_side_of_the_split(kind: str, tmp_path: Path) -> None:
    source = opened(written(kind, tmp_path / "source", PATHS))
    rows = rows_by_split(source, validation_images=10)
    assert sorted(rows["train"] + rows["validation"]) == list(range(36))
    images = {split: {Path(source.read(row).name).name for row in numbers} for split, numbers in rows.items()}
    assert len(images["validation"]) == 3
    assert images["train"] == set(NAMES) - images["validation"]
    assert source.families.num_repeated == 12


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_without_repeats_has_no_families(kind: str, tmp_path: Path) -> None:
    source = opened(written(kind, tmp_path / "source", NAMES))
    assert source.families == Families()


def test_links_to_one_file_are_one_image_and_what_names_none_has_no_family(tmp_path: Path) -> None:
    folder = written("metadata.jsonl", tmp_path / "source", NAMES[:3])
    (folder / "link.png").symlink_to("1.png")
    (folder / "unlisted.png").write_bytes(PNG.getvalue())
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "link.png", "caption": "a cat again"}\n{\n{"file_name": "gone.png"}\n')
    source = opened(folder)
    first = [f"row {number:012d}" for number in range(6)]
    assert source.families.of_rows == [first[0], first[1], first[2], first[1], None, first[5], None]
    assert not {4, 6} & set(rows_by_split(source, validation_images=5)["validation"])


def with_images(file: Path, images: Sequence[dict[str, object] | None]) -> Path:
    """A table that holds images, each row with a text of its own."""
    pytest.importorskip("datasets", reason="datasets is of the extra ecdit[data]")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    texts = [f"a cat of class {number % 3}" for number in range(len(images))]
    parquet.write_table(pa.table({"image": pa.array(images, kind), "caption": texts}), file)
    return file


def picture(color: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_images_in_a_table_are_one_by_their_bytes_and_not_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    images = [
        {"bytes": picture(0), "path": "x.png"}, {"bytes": picture(1), "path": "x.png"}, {"bytes": b"", "path": None},
        {"bytes": None, "path": "0.png"}, {"bytes": None, "path": "./0.png"}, None, {"bytes": None, "path": None},
        {"bytes": picture(0), "path": "y.png"},
    ]  # fmt: skip
    source = opened(with_images(tmp_path / "t.parquet", images))
    first = [f"row {number:012d}" for number in range(8)]
    assert source.families.of_rows == [first[0], first[1], first[2], first[3], first[3], None, None, first[0]]
    assert source.families.num_repeated == 2


def test_rows_that_hold_one_image_are_on_one_side_of_the_split_in_all_files(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    shown = [{"bytes": picture(color), "path": None} for color in range(12)]
    for number in range(3):
        with_images(tmp_path / "source" / f"{number}.parquet", shown)
    source = opened(tmp_path / "source")
    rows = rows_by_split(source, validation_images=10)
    assert sorted(rows["train"] + rows["validation"]) == list(range(36))
    images = {split: {source.read(row).content for row in numbers} for split, numbers in rows.items()}
    assert len(images["validation"]) == 3
    assert images["train"] == {picture(color) for color in range(12)} - images["validation"]
    assert source.families.num_repeated == 12


def test_a_table_of_other_images_has_no_families_and_they_are_compared_once_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [{"bytes": picture(color), "path": "x.png"} for color in range(12)]
    source = opened(with_images(tmp_path / "t.parquet", shown))
    compared = []
    monkeypatch.setattr(image_tables, "blake2b", lambda *args, **keys: compared.append(1) or blake2b(*args, **keys))
    assert source.read(0).content == picture(0)
    assert not compared
    assert source.families == source.families == Families()
    assert len(compared) == 12


def test_a_family_is_called_by_its_first_row_wherever_the_source_lies() -> None:
    assert families_of_images(["/a/x", None, "/a/y", "/a/x"], 5) == Families(
        ["row 000000000000", None, "row 000000000002", "row 000000000000", None], 1,
    )  # fmt: skip
    assert families_of_images([None, None, "x"], 4) == Families()


def test_where_no_row_of_the_drawn_images_is_good_another_image_follows(tmp_path: Path) -> None:
    source = opened(written("metadata.jsonl", tmp_path / "source", PATHS))
    first = rows_by_split(source)["validation"]
    assert len(first) == 3
    more = rows_by_split(source, bad=frozenset(first))["validation"]
    assert len(more) == 6
    assert set(first) < set(more)
    assert rows_by_split(source, bad=frozenset(first[:2]))["validation"] == first
    assert len(rows_by_split(source, bad=frozenset(range(36)))["train"]) == 33


def test_rows_of_one_each_are_divided_as_rows_without_families(tmp_path: Path) -> None:
    source = opened(written("metadata.jsonl", tmp_path / "source", NAMES))
    single = replace(source, find_families=lambda: Families([f"row {row:012d}" for row in range(len(source))]))
    first = rows_by_split(source, validation_images=3)["validation"]
    for bad, number in ((frozenset(), 3), (frozenset(first), 4), (frozenset(range(12)), 3)):
        divided = rows_by_split(source, bad, validation_images=3)
        assert divided == rows_by_split(single, bad, validation_images=3)
        assert len(divided["validation"]) == number


def test_an_image_is_always_left_to_train_on(tmp_path: Path) -> None:
    two = opened(written("metadata.jsonl", tmp_path / "two", [*["a.png"] * 50, *["b.png"] * 3]))
    assert len(rows_by_split(two, validation_images=52)["train"]) in (3, 50)
    one = opened(written("metadata.jsonl", tmp_path / "one", ["a.png", "./a.png", "a.png"]))
    with pytest.raises(ConfigError, match=r"one has one image that can be used, in 3 rows\. Add others: some must be"):
        rows_by_split(one)


def test_the_command_says_how_many_images_have_several_rows_and_the_set_keeps_it(tmp_path: Path) -> None:
    source, out, said = written("metadata.csv", tmp_path / "source", PATHS, "label"), tmp_path / "set", []
    request = Request(str(source), text="labels", image_size=8, shard_images=16, validation_images=6)
    made = prepare(request, out, say=said.append)
    assert made is not None
    assert said == ["12 images have several rows. All rows of an image are either trained on or validated with."]
    images = {
        split: {row // 3 for row in tensors_of(out, split, "row_N").tolist()} for split in ("train", "validation")
    }
    assert (len(images["train"]), len(images["validation"])) == (10, 2)
    assert not images["train"] & images["validation"]
    stored = json.loads((out / "request.json").read_text())
    assert stored.pop("images_of_several_rows") == 12
    (out / "request.json").write_text(json.dumps(stored))  # as an earlier version divided the rows
    with pytest.raises(ConfigError, match=r"was begun with another images_of_several_rows: 0 there, 12 here\."):
        prepare(request, out)
