"""Rows that name one image are trained on or validated with together, whatever the table, and however it is spelt."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from experiments.data.prepare.image_families import families_of_images
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
    assert source.num_repeated == 12


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_without_repeats_has_no_families(kind: str, tmp_path: Path) -> None:
    source = opened(written(kind, tmp_path / "source", NAMES))
    assert (source.families, source.num_repeated) == (None, 0)


def test_links_to_one_file_are_one_image_and_what_names_none_has_no_family(tmp_path: Path) -> None:
    folder = written("metadata.jsonl", tmp_path / "source", NAMES[:3])
    (folder / "link.png").symlink_to("1.png")
    (folder / "unlisted.png").write_bytes(PNG.getvalue())
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "link.png", "caption": "a cat again"}\n{\n{"file_name": "gone.png"}\n')
    source = opened(folder)
    first = [f"row {number:012d}" for number in range(6)]
    assert source.families == [first[0], first[1], first[2], first[1], None, first[5], None]
    assert not {4, 6} & set(rows_by_split(source, validation_images=5)["validation"])


def test_images_in_a_table_are_others_even_if_they_have_one_name(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is of the extra ecdit[data]")
    (tmp_path / "0.png").write_bytes(PNG.getvalue())
    images = [{"bytes": PNG.getvalue(), "path": "x.png"}] * 2 + [
        {"bytes": None, "path": "0.png"}, {"bytes": None, "path": "./0.png"}, None,
    ]  # fmt: skip
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    parquet.write_table(pa.table({"image": pa.array(images, kind), "caption": list("abcde")}), tmp_path / "t.parquet")
    source = opened(tmp_path / "t.parquet")
    assert source.families == [f"row {number:012d}" for number in (0, 1, 2, 2)] + [None]
    assert source.num_repeated == 1


def test_a_family_is_called_by_its_first_row_wherever_the_source_lies() -> None:
    assert families_of_images(["/a/x", None, "/a/y", "/a/x"], 5) == (
        ["row 000000000000", None, "row 000000000002", "row 000000000000", None], 1,
    )  # fmt: skip
    assert families_of_images([None, None, "x"], 4) == (None, 0)


def test_where_no_row_of_the_drawn_images_is_good_another_image_follows(tmp_path: Path) -> None:
    source = opened(written("metadata.jsonl", tmp_path / "source", PATHS))
    first = rows_by_split(source)["validation"]
    assert len(first) == 3
    more = rows_by_split(source, bad=frozenset(first))["validation"]
    assert len(more) == 6
    assert set(first) < set(more)
    assert rows_by_split(source, bad=frozenset(first[:2]))["validation"] == first
    assert len(rows_by_split(source, bad=frozenset(range(36)))["train"]) == 33


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
