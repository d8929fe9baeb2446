"""Files, tables and columns beside what is read: they are used, listed with a reason, or said to be unused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from experiments.data.prepare.job import prepare
from experiments.data.prepare.path_tables import SAMPLED_LINES
from experiments.data.prepare.request import Request
from experiments.data.prepare.source import open_source
from experiments.data.prepare.source_rows import UnusableRowError
from experiments.data.prepare.text_columns import LABELS
from experiments.errors import ConfigError
from tests.real_images import need_data_extra
from tests.unit.data.prepare.test_sources import JPG, PNG, open_rows, rows_of, write, write_tar

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


def test_label_files_beside_images_in_folders_are_their_labels(tmp_path: Path) -> None:
    """A WebDataset that was unpacked: its folders are shards."""
    files = {"00/1.jpg": JPG, "00/1.cls": b"3", "01/2.jpg": JPG, "01/2.cls": b"0", "01/3.jpg": JPG}
    assert classes(write(tmp_path / "shards", files)) == (["3", "0", None], ())
    stray = {"cat/1.jpg": JPG, "cat/1.cls": b"3", "dog/2.jpg": JPG, "dog/3.jpg": JPG}
    labels, notes = classes(write(tmp_path / "classes", stray))
    assert labels == ["cat", "dog", "dog"]
    assert notes == (
        "The classes are the folders, and not read: the .cls beside 1 of 3 images. Use --label-column cls.",
    )
    assert classes(tmp_path / "classes", "cls")[0] == ["3", None, None]


@pytest.mark.parametrize(
    ("table", "labels", "said"),
    [
        (b"file_name,label\nimages/1.jpg,cat\nimages/2.jpg,dog\n", ["cat", "dog", None], ""),
        (b"file_name,breed\nimages/1.jpg,cat\n", ["images"] * 3, "its columns are file_name, breed. Name the right"),
        (b"file_name,label\n1.jpg,cat\n", ["images"] * 3, "labels.csv, which names none of the images."),
        (b"id,label\n1,cat\n", ["images"] * 3, "labels.csv, which names none of the images."),
    ],
)
def test_a_single_folder_of_images_is_no_class_where_a_table_has_labels(
    table: bytes, labels: list[str | None], said: str, tmp_path: Path
) -> None:
    images = {f"images/{number}.jpg": JPG for number in (1, 2, 3)}
    found, notes = classes(write(tmp_path / "source", images | {"labels.csv": table}))
    assert found == labels
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_a_table_of_labels_beside_several_folders_is_said_to_be_unused(tmp_path: Path) -> None:
    files = {"cat/1.jpg": JPG, "dog/2.jpg": JPG, "labels.csv": b"file_name,kind\ncat/1.jpg,tiger\n"}
    assert classes(write(tmp_path / "other", files)) == (["cat", "dog"], ())
    labels, notes = classes(write(tmp_path / "label", files | {"labels.csv": b"image,label\ncat/1.jpg,tiger\n"}))
    assert labels == ["cat", "dog"]
    assert notes == ("The classes are the folders, and not read: a table's column. Use --label-column label.",)
    assert classes(tmp_path / "label", "label")[0] == ["tiger", None]


def test_packed_files_beside_loose_images_are_said_to_be_unread_and_change_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"00000/1.jpg": JPG, "00000/1.txt": b"one", "00000.parquet": b"of img2dataset"})
    write_parquet(source / "urls.parquet", {"url": ["x"], "caption": ["one"]})
    plain = open_rows(source)
    for number in range(3):
        write_tar(source / f"0000{number}.tar", {"1.jpg": JPG, "1.txt": b"one"})
    write_parquet(source / "more.parquet", {"image": embedded("2.png"), "caption": ["two"]})
    rows = open_rows(source)
    assert (len(rows), rows.sample_sha256(), plain.notes) == (1, plain.sample_sha256(), ())
    assert rows.notes == (
        "Packed files beside other images are not read: 00000.tar, 00001.tar, 00002.tar and 1 more. To use them, "
        "unpack them, or name a folder that holds nothing else.",
    )


def test_tables_beside_metadata_that_are_read_are_said_to_be_unread(tmp_path: Path) -> None:
    files = {"1.png": PNG, "2.png": PNG, "metadata.jsonl": b'{"file_name": "1.png", "caption": "one", "label": "a"}'}
    source = write(tmp_path / "source", files)
    assert open_rows(source).notes == ()
    more = b"file_name,caption\n2.png,two\n"
    write(source, {"metadata.csv": more, "more.csv": more})
    write_parquet(source / "more.parquet", {"image": embedded("2.png"), "caption": ["two"]})
    assert rows_of(source) == ({"1.png": "one"}, {"2.png": "no caption"})
    said = "Not used: metadata.csv, more.csv, because the captions are read from metadata.jsonl. To use their rows"
    tables, packed_files = open_rows(source).notes
    assert tables == f"{said}, add them there."
    assert "are not read: more.parquet. To use them" in packed_files
    assert said.replace("captions", "labels") in "".join(classes(source, "label")[1])
    write(source, {"b/3.png": PNG, "b/metadata.csv": b"file_name,caption\n3.png,three\n"})
    assert "more.csv, because the captions are read from b/metadata.csv, metadata.jsonl." in open_rows(source).notes[0]


def test_archives_beside_tars_are_said_to_be_unread(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"1.tar.gz": b"x", "2.tgz": b"x", "3.zip": b"x"})
    write_tar(source / "0.tar", {"1.jpg": JPG, "1.txt": b"one"})
    assert len(open_rows(source)) == 1
    assert "are not read: 1.tar.gz, 2.tgz, 3.zip. To use them" in "".join(open_rows(source).notes)


@pytest.mark.parametrize(
    ("columns", "is_said"),
    [
        ({"image": [PNG], "caption": ["two"]}, True),
        ({"jpg": pa.array([JPG], pa.large_binary()), "txt": ["two"]}, True),
        ({"image_bytes": [None, JPG], "filename": ["gone.png", "b.png"], "caption": ["one", "two"]}, True),
        ({"image_bytes": [PNG], "filename": ["1.jpg"], "caption": ["two"]}, False),
        ({"url": ["x"], "sha256": [b"\x89hash"], "caption": ["two"]}, False),
        ({"url": pa.array([], pa.string()), "image": pa.array([], pa.binary())}, False),
    ],
    ids=["image", "jpg", "gone", "names", "hash", "empty"],
)
def test_parquet_with_plain_bytes_of_images_beside_loose_images_is_said_to_be_unread(
    columns: dict[str, object], is_said: bool, tmp_path: Path
) -> None:
    source = write(tmp_path / "source", {"1.jpg": JPG, "1.txt": b"one"})
    write_parquet(source / "more.parquet", columns)
    assert rows_of(source) == ({"1.jpg": "one"}, {})
    assert ["are not read: more.parquet. To use them" in note for note in open_rows(source).notes] == [True] * is_said


def test_parquet_with_images_beside_a_table_of_paths_is_said_to_be_unread(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a.png": PNG})
    write_parquet(source / "0.parquet", {"file_name": ["a.png"], "caption": ["one"]})
    write_parquet(source / "1.parquet", {"image": embedded("b.png"), "caption": ["two"]})
    assert rows_of(source) == ({"a.png": "one"}, {})
    assert "are not read: 1.parquet. To use them" in "".join(open_rows(source).notes)


def test_a_compressed_tar_is_told_from_one_that_is_cut_short(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "part.tar", {"1.jpg": JPG, "1.txt": b"one"})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"part\.tar is compressed, .* Unpack it with gunzip < part\.tar > OTHER"):
        open_rows(path)


def test_what_is_unused_is_said_when_a_set_is_prepared(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {f"{name}/{place}.png": PNG for name in ("cat", "dog") for place in (1, 2)})
    write_tar(source / "cat.tar", {"1.png": PNG})
    said: list[str] = []
    assert prepare(Request(str(source), text="labels", image_size=8), tmp_path / "set", say=said.append) is not None
    assert [line for line in said if "are not read: cat.tar." in line]


def test_what_is_unused_is_said_before_an_error_that_it_explains(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"assets/1.png": PNG})
    write_parquet(source / "0.parquet", {"image": embedded("a.png", "b.png"), "label": ["cat", "dog"]})
    said: list[str] = []
    with pytest.raises(ConfigError, match="does not fit a source of 1 images"):
        prepare(Request(str(source), text="labels", image_size=8), tmp_path / "set", say=said.append)
    assert [line for line in said if "are not read: 0.parquet." in line]


@pytest.mark.parametrize("make", [write, packed])
def test_reasons_speak_of_labels_where_labels_are_asked_for(make: Make, tmp_path: Path) -> None:
    files = {"a.jpg": JPG, "a.png": PNG, "a.cls": b"1", "b.png": PNG, "b.cls": b"2", "b.CLS": b"3", "lost.cls": b"4"}
    rows = open_source(str(make(tmp_path / "source", files)), None, None, None, None, LABELS)
    reasons = {}
    for number in range(len(rows)):
        try:
            rows.read(number)
        except UnusableRowError as error:
            reasons[error.name] = error.reason
    assert short(reasons) == {
        "a.png": "the label belongs to a.jpg, of the same name", "b.png": "it has two labels with the ending .cls",
        "lost.cls": "a label without an image",
    }  # fmt: skip


@pytest.mark.parametrize("make", [write, packed])
def test_two_images_of_one_name_without_a_caption_both_have_none(make: Make, tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.jpg": JPG, "b.png": PNG, "b.txt": b"one"}
    used, listed = rows_of(make(tmp_path / "source", files))
    assert used == {"b.png": "one"}
    assert short(listed) == {"a.png": "no caption", "a.jpg": "no caption"}


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


def test_a_table_without_text_does_not_refuse_the_others(tmp_path: Path) -> None:
    tables = {
        "boxes.csv": b"image,x,y\n000.png,1,2\n", "captions.csv": b"image,caption\n001.png,one\n",
        "twice.csv": b"a,a\n1,2\n", "zero.parquet": b"damaged",
    }  # fmt: skip
    source = write(tmp_path / "source", pictures(2) | tables)
    assert rows_of(source) == ({"001.png": "one"}, {"000.png": "no caption"})
    said = open_rows(source).notes
    assert len(said) == 3
    assert said[0] == (
        f"Not used: SOURCE {source / 'boxes.csv'} has no captions: its columns are image, x, y. Name the right one "
        "with --caption-column."
    )
    (source / "captions.csv").unlink()
    with pytest.raises(ConfigError, match=r"boxes\.csv has no captions: its columns are image, x, y\."):
        open_rows(source)


def test_metadata_without_text_do_not_hinder_captions_elsewhere_and_are_said_to_be_unused(tmp_path: Path) -> None:
    files = {"a.png": PNG, "b.png": PNG, "metadata.jsonl": b'{"file_name": "a.png", "width": 9}'}
    elsewhere = {
        "txt": {"a.txt": b"one"}, "table": {"captions.csv": b"image,caption\na.png,one\n"},
        "metadata": {"metadata.csv": b"file_name,caption\na.png,one\n"},
    }  # fmt: skip
    for name, more in elsewhere.items():
        source = write(tmp_path / name, files | more)
        assert rows_of(source) == ({"a.png": "one"}, {"b.png": "no caption"}), name
        (said,) = open_rows(source).notes
        assert said.startswith(f"Not used: SOURCE {source / 'metadata.jsonl'} has no captions: its columns are"), name
    with pytest.raises(ConfigError, match=r"metadata\.jsonl has no captions: its columns are file_name, width\."):
        open_rows(write(tmp_path / "nowhere", files | {"boxes.csv": b"image,x\na.png,1\n"}))


def test_text_of_another_source_in_the_folder_is_a_reason_or_said(tmp_path: Path) -> None:
    beside = {"a/1.png": PNG, "a/1.txt": b"one", "a/2.png": PNG, "a/3.png": PNG, "a/3.json": b"{}"}
    table = b"file_name,caption\n4.png,four\n5.png,five\n"
    source = write(tmp_path / "metadata", beside | {"b/4.png": PNG, "b/5.png": PNG, "b/metadata.csv": table})
    used, listed = rows_of(source)
    assert used == {"4.png": "four", "5.png": "five"}
    unread = "no table names it, and the .txt beside it is not read"
    assert listed == {"a/1.png": unread, "a/2.png": "no caption", "a/3.png": "no caption"}
    more = {"a/2.txt": b"two", "a/3.txt": b"three", "b/4.png": PNG, "b/captions.csv": table}
    source = write(tmp_path / "table", beside | more)
    assert rows_of(source)[0] == {"1.png": "one", "2.png": "two", "3.png": "three"}
    assert open_rows(source).notes == (
        "Not used: the tables that name images: files beside them give as many captions or more.",
    )


def test_metadata_without_labels_do_not_hinder_folders_of_classes(tmp_path: Path) -> None:
    files = {"cat/1.jpg": JPG, "dog/2.jpg": JPG, "metadata.csv": b"file_name,text\ncat/1.jpg,a cat\n"}
    labels, (said,) = classes(write(tmp_path / "source", files))
    assert labels == ["cat", "dog"]
    assert said.startswith("Not used: ")
    assert "metadata.csv has no labels: its columns are file_name, text." in said


def test_metadata_of_a_split_without_text_does_not_refuse_another_but_damaged_ones_do(tmp_path: Path) -> None:
    files = {"train/a.png": PNG, "test/b.png": PNG, "train/metadata.csv": b"file_name,text\na.png,one\n"}
    source = write(tmp_path / "source", files | {"test/metadata.csv": b"file_name\nb.png\n"})
    assert rows_of(source) == ({"a.png": "one"}, {"test/b.png": "no caption"})
    (source / "test" / "metadata.csv").write_bytes(b"file_name,file_name\nb.png,b.png\n")
    with pytest.raises(ConfigError, match=r"test/metadata\.csv cannot be read: line 1 has the column"):
        open_rows(source)


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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"size": [1]}, {"size": [{"width": 1}]}),
        ({"size": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}, {"size": ["large"]}),
        ({"json": [{"caption": "one", "width": 1}]}, {"json": [{"caption": "two", "height": 2}]}),
    ],
    ids=["types", "unknown", "keys"],
)
def test_columns_that_are_not_read_do_not_matter(
    first: dict[str, object], second: dict[str, object], tmp_path: Path
) -> None:
    for name, word, others in (("0", "one", first), ("1", "two", second)):
        captions = {} if "json" in others else {"caption": [word]}
        write_parquet(tmp_path / "s" / f"{name}.parquet", {"image": embedded(f"{name}.png")} | captions | others)
    assert rows_of(tmp_path / "s") == ({"0.png": "one", "1.png": "two"}, {})


def test_the_classes_of_a_column_that_is_not_read_do_not_matter(tmp_path: Path) -> None:
    import datasets

    for name, names in (("0", ["cat", "dog"]), ("1", ["dog", "cat"])):
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "text": datasets.Value("string")}
        row = {"image": {"bytes": PNG, "path": f"{name}.png"}, "label": 0, "text": name}
        file = tmp_path / "s" / f"{name}.parquet"
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_list([row], features=datasets.Features(kinds)).to_parquet(file)
    assert rows_of(tmp_path / "s") == ({"0.png": "0", "1.png": "1"}, {})


def test_files_of_parquet_may_lack_a_column_that_is_read(tmp_path: Path) -> None:
    folder, size = tmp_path / "s", [{"width": 1}]
    write_parquet(folder / "0.parquet", {"caption": ["zero"], "size": ["large"]})
    write_parquet(folder / "1.parquet", {"image": embedded("1.png"), "caption": ["one"], "size": size})
    write_parquet(folder / "2.parquet", {"size": [2, 3]})
    write_parquet(folder / "3.parquet", {"image": embedded("3.png"), "size": size})
    write_parquet(folder / "4.parquet", {"image": embedded("4.png"), "caption": ["four"]})
    absent = dict.fromkeys(("row 0", "row 2", "row 3"), "it has no image")
    assert rows_of(folder) == ({"1.png": "one", "4.png": "four"}, absent | {"3.png": "no caption"})


def test_files_of_parquet_that_do_not_fit_are_named_with_the_column_that_is_read(tmp_path: Path) -> None:
    """The images differ, too, and can be read nevertheless."""
    plain = pa.array([{"path": "0.png", "bytes": PNG}])
    write_parquet(tmp_path / "s" / "0.parquet", {"size": [1], "image": plain, "caption": ["one"]})
    columns = {"size": ["a"], "image": embedded("1.png"), "caption": [{"en": "two"}]}
    write_parquet(tmp_path / "s" / "1.parquet", columns)
    with pytest.raises(ConfigError) as caught:
        open_rows(tmp_path / "s")
    message = "The column 'caption' is string in 0.parquet, and struct<en: string> in 1.parquet."
    assert message in str(caught.value)


def test_a_key_that_the_first_rows_lack_is_found_and_a_rare_one_is_not_preferred(tmp_path: Path) -> None:
    names = [f"{place}.png" for place in range(SAMPLED_LINES + 1)]
    bare = [{"file_name": name} for name in names[:-1]]
    source = write(tmp_path / "late", {names[-1]: PNG})
    rows = [*bare, {"file_name": names[-1], "caption": "late"}]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for given in (None, "caption"):
        assert rows_of(source, caption_column=given)[0] == {names[-1]: "late"}
    source = write(tmp_path / "rare", {names[0]: PNG})
    rows = [{**row, "text": "usual"} for row in bare] + [{"file_name": names[-1], "caption": "rare"}]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert rows_of(source)[0] == {names[0]: "usual"}


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
    """For every image img2dataset writes such a JSON file, and leaves out the text file where there is no caption."""
    files = pictures(3) | {"000.txt": b"zero", "001.txt": b"one"}
    described = {f"00{place}.json": b'{"width": 5}' for place in range(3)}
    plain, source = make(tmp_path / "plain", files), make(tmp_path / "described", files | described)
    used, listed = rows_of(source)
    assert used == {"000.png": "zero", "001.png": "one"}
    assert short(listed) == {"002.png": "it has no .txt, which is the ending that is used, but .json"}
    assert (len(open_rows(source)), open_rows(source).sample_sha256()) == (3, open_rows(plain).sample_sha256())


@pytest.mark.parametrize("stray", [{"000.txt": b"a note"}, {"000.json": b'{"iso": 100}'}])
def test_a_stray_file_does_not_hide_a_table(stray: dict[str, bytes], tmp_path: Path) -> None:
    table = b"image,caption\n" + b"".join(b"%03d.png,from the table\n" % place for place in range(3))
    used, listed = rows_of(write(tmp_path / "source", pictures(3) | stray | {"captions.csv": table}))
    assert (set(used.values()), listed) == ({"from the table"}, {})


def test_files_beside_all_images_come_before_a_table(tmp_path: Path) -> None:
    captions = {f"{place:03d}.txt": b"beside" for place in range(3)}
    table = b"image,caption\n" + b"".join(b"%03d.png,from the table\n" % place for place in range(3))
    used, _ = rows_of(write(tmp_path / "source", pictures(3) | captions | {"captions.csv": table, "a.csv": b"\0"}))
    assert set(used.values()) == {"beside"}


def test_a_column_of_paths_may_be_categorical_and_paths_may_have_any_sign_of_writing(tmp_path: Path) -> None:
    names = ["Screenshot 10.25\u202fAM.png", "a\u00a0b.png", "\u3000.png", "\U0001f469\u200d\U0001f692.png"]
    source = write(tmp_path / "source", dict.fromkeys(names, PNG))
    paths = pa.array([*names, "a\x1b.png"]).dictionary_encode()
    write_parquet(source / "table.parquet", {"image": paths, "caption": [*"abcd", "e"]})
    used, listed = rows_of(source)
    assert used == dict(zip(names, "abcd", strict=True))
    assert listed == {"table.parquet row 4": "image is not the path of a file"}


def test_a_table_of_bytes_and_names_that_are_not_there_is_one_of_images(tmp_path: Path) -> None:
    columns = {"image_bytes": pa.array([PNG]), "filename": ["a.png"], "caption": ["one"]}
    file = write_parquet(tmp_path / "s" / "t.parquet", columns)
    with pytest.raises(
        ConfigError, match=r"has no column of images\. Name it with --image-column: image_bytes, filename"
    ):
        open_rows(file)
    assert list(rows_of(file, "image_bytes")[0].values()) == ["one"]
    write(tmp_path / "s", {"a.png": PNG})  # beside their images the bytes are thumbnails, or hashes
    assert rows_of(file) == ({"a.png": "one"}, {})


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


@pytest.mark.parametrize(
    ("table", "column", "hint"),
    [
        (b"img,caption\na.png,x\n", None, "Name the column of files with --image-column, or put each caption into a"),
        (b"file_name;caption\na.png;x\n", None, "Separate its columns by commas."),
        (b"file_name,caption\na.png,x\n", "file_nam", "'file_nam' is none of them. Did you mean 'file_name'?"),
    ],
)
@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv"])
def test_a_table_that_names_no_files_is_said_with_its_columns(
    name: str, table: bytes, column: str | None, hint: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "source", {"a.png": PNG, name: table})
    with pytest.raises(ConfigError) as caught:
        open_rows(source, column)
    columns = table.decode().partition("\n")[0].replace(",", ", ")
    assert f"has no captions: {name} names no files, its columns are {columns}. " in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize("text", ["caption", "label"])
def test_the_classes_of_a_data_set_are_their_names_as_captions_too(text: str, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = [{"image": {"bytes": PNG, "path": f"{place}.png"}, "label": label} for place, label in enumerate((1, 0, -1))]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "s.parquet")
    if text == "label":
        assert classes(tmp_path / "s.parquet")[0] == ["dog", "cat", None]
    else:
        assert open_rows(tmp_path / "s.parquet", caption_column="label").class_names is None
        assert rows_of(tmp_path / "s.parquet", caption_column="label") == (
            {"0.png": "dog", "1.png": "cat"}, {"2.png": "no caption"},
        )  # fmt: skip


NUMBERS: Sequence[tuple[list[object], list[str | None]]] = [
    ([1.0, None, 0.0], ["1", None, "0"]),
    ([1.0, float("nan"), 0.0], ["1", None, "0"]),
    ([True, False, None], ["True", "False", None]),
]


@pytest.mark.parametrize(("values", "labels"), NUMBERS, ids=["null", "nan", "bool"])
@pytest.mark.parametrize("kind", ["bytes", "paths", "json"])
def test_labels_may_be_stored_as_floats_and_truth_values(
    kind: str, values: list[object], labels: list[str | None], tmp_path: Path
) -> None:
    names = [f"{place:03d}.png" for place in range(3)]
    source = write(tmp_path / "source", {} if kind == "bytes" else pictures(3))
    if kind == "json":
        lines = [json.dumps({"file_name": name, "label": value}) for name, value in zip(names, values, strict=True)]
        (source / "metadata.jsonl").write_text("\n".join(lines))
    else:
        images = embedded(*names) if kind == "bytes" else pa.array(names)
        source = write_parquet(tmp_path / "source" / "t.parquet", {"image": images, "label": values})
    assert classes(source)[0] == labels


def test_labels_that_are_none_are_refused_with_the_reason(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", {"image": embedded("a.png", "b.png"), "label": [0.5, 0.25]})
    with pytest.raises(
        ConfigError, match=r"no label of a class \(row 0: its label 0\.5 is no whole number\)\. Name the "
    ):
        prepare(Request(str(file), text="labels", image_size=8), tmp_path / "set")


VIEWS = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (pa.array([PNG, PNG], pa.binary_view()), pa.string_view()),
        (pa.array([PNG, PNG], pa.large_binary()), pa.large_string()),
        (pa.array([{"bytes": PNG}] * 2, VIEWS), pa.string_view()),
        (pa.array(["1.png", "2.png"], pa.string_view()), pa.string_view()),
        (pa.array(["1.png", "2.png"], pa.large_string()), pa.large_string()),
    ],
    ids=["bytes", "large bytes", "struct", "paths", "large paths"],
)
def test_columns_of_parquet_may_be_views_or_large(image: pa.Array, text: pa.DataType, tmp_path: Path) -> None:
    has_paths = image.type in (pa.string_view(), pa.large_string())
    source = write(tmp_path / "source", {"1.png": PNG, "2.png": PNG} if has_paths else {})
    captions = pa.array([b"one", b"\xe4"], pa.large_binary()).view(pa.large_string()).cast(text)
    write_parquet(source / "a.parquet", {"image": image, "caption": captions})
    rows = open_rows(source)
    assert (len(rows), rows.read(0).caption, rows.read(0).content) == (2, "one", PNG)
    with pytest.raises(UnusableRowError, match="not UTF-8"):
        rows.read(1)


@pytest.mark.parametrize("names", [("image", "caption", "caption"), ("image", "image", "caption")])
@pytest.mark.parametrize("image", [{"bytes": PNG}, PNG, "1.png"], ids=["struct", "bytes", "path"])
def test_a_column_that_is_read_and_that_a_parquet_file_has_twice_is_refused(
    names: tuple[str, ...], image: object, tmp_path: Path
) -> None:
    source = write(tmp_path / "source", {"1.png": PNG} if image == "1.png" else {})
    columns = [pa.array([image if name == "image" else "one"]) for name in names]
    source.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns, names=list(names)), source / "a.parquet")
    with pytest.raises(ConfigError, match=rf"a\.parquet cannot be read: it has the column '{names[1]}' twice"):
        open_rows(source)


def test_a_column_that_is_not_read_may_be_there_twice(tmp_path: Path) -> None:
    table = pa.table([embedded("1.png"), ["one"], ["x"], ["y"]], names=["image", "caption", "url", "url"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert open_rows(tmp_path).read(0).caption == "one"


def test_lists_in_the_place_of_images_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [[{"bytes": PNG, "path": None}]], "caption": ["one"]})
    with pytest.raises(ConfigError, match="holds no images: it holds lists"):
        open_rows(tmp_path)
