"""What is read of folders, tars and tables that others wrote: every row is used, or listed with its reason."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from experiments.data.prepare.encoding import LeftOutRow, Sizing, load_row
from experiments.data.prepare.source import SourceRows, open_source
from experiments.errors import ConfigError
from tests.real_images import need_data_extra

need_data_extra()
CAFE = "a café nr"
WORDS = (f"{CAFE} 0", f"{CAFE} 1", f"{CAFE} 2", f"{CAFE} 3")
Rows = tuple[dict[str, str], dict[str, str]]
"""Captions by name, and the reasons of what was left out by name."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


def picture(suffix: str = "png") -> bytes:
    file = io.BytesIO()
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF", "dib": "BMP"}
    Image.new("RGB", (9, 8), "red").save(file, kinds.get(suffix, suffix.upper()))
    return file.getvalue()


PNG, JPG = picture("png"), picture("jpg")


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def open_rows(source: Path, image_column: str | None = None, caption_column: str | None = None) -> SourceRows:
    return open_source(str(source), None, None, image_column, caption_column)


def rows_of(source: Path, image_column: str | None = None, caption_column: str | None = None) -> Rows:
    rows = open_rows(source, image_column, caption_column)
    used, left = {}, {}
    for number in range(len(rows)):
        loaded = load_row(rows, number, Sizing(8))
        if isinstance(loaded, LeftOutRow):
            left[loaded.name] = loaded.reason
        else:
            used[Path(rows.read(number).name).name] = loaded.caption
    return used, left


def in_folder(folder: Path, captions: Mapping[str, bytes]) -> Path:
    return write(folder, {f"{name}.png": PNG for name in captions} | {f"{n}.txt": text for n, text in captions.items()})


def in_tar(folder: Path, captions: Mapping[str, bytes]) -> Path:
    files = {
        f"{name}.{end}": content for name, text in captions.items() for end, content in (("png", PNG), ("txt", text))
    }
    return write_tar(folder / "part.tar", files)


def in_table(folder: Path, captions: Mapping[str, bytes]) -> Path:
    """A Parquet file whose captions are called text, and may be none."""
    folder.mkdir()
    binary = pa.array(list(captions.values()), pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
    images = pa.array([{"bytes": PNG, "path": f"{name}.png"} for name in captions])
    parquet.write_table(pa.table({"image": images, "caption": text}), folder / "part.parquet")
    return folder / "part.parquet"


def in_json_lines(folder: Path, captions: Mapping[str, bytes]) -> Path:
    lines = [b'{"file_name": "%s.png", "caption": "%s"}' % (name.encode(), text) for name, text in captions.items()]
    return write(folder, {f"{name}.png": PNG for name in captions} | {"metadata.jsonl": b"\n".join(lines)})


def in_csv(folder: Path, captions: Mapping[str, bytes]) -> Path:
    lines = [b"file_name,caption", *(b"%s.png,%s" % (name.encode(), text) for name, text in captions.items())]
    return write(folder, {f"{name}.png": PNG for name in captions} | {"metadata.csv": b"\n".join(lines)})


CONTAINERS: list[Callable[[Path, Mapping[str, bytes]], Path]] = [in_folder, in_tar, in_table, in_json_lines, in_csv]
"""Each holds a.png, b.png, ... and their captions as bytes."""


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda made: made.__name__)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_a_caption_that_is_not_utf_8_is_listed_and_the_others_used(
    container: Callable[[Path, Mapping[str, bytes]], Path], encoding: str, tmp_path: Path
) -> None:
    captions = {f"{number}": word.encode() for number, word in enumerate(WORDS)} | {"x": WORDS[0].encode(encoding)}
    used, left = rows_of(container(tmp_path / "source", captions))
    assert list(used.values()) == list(WORDS)
    assert left == {"x.png": "its text is not UTF-8"} or left == {"part.tar/x.png": "its text is not UTF-8"}


@pytest.mark.parametrize("container", [in_folder, in_tar, in_table], ids=lambda made: made.__name__)
def test_text_is_decoded_by_its_byte_order_mark_and_nul_bytes_are_listed(
    container: Callable[[Path, Mapping[str, bytes]], Path], tmp_path: Path
) -> None:
    encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
    captions = {f"{number}": WORDS[0].encode(name) for number, name in enumerate(encodings)}
    captions |= {
        "be16": b"\xfe\xff" + WORDS[0].encode("utf-16-be"),
        "be32": b"\0\0\xfe\xff" + WORDS[0].encode("utf-32-be"),
    }
    captions |= {"bare": "a cat".encode("utf-16-le"), "nul": b"a\0cat"}
    used, left = rows_of(container(tmp_path / "source", captions))
    assert set(used.values()) == {WORDS[0]}
    assert len(used) == 6
    assert [Path(name).name for name in left] == ["bare.png", "nul.png"]
    assert all("NUL bytes" in reason for reason in left.values())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_whole_tables_are_decoded_by_their_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    for container in (in_json_lines, in_csv):
        source = container(tmp_path / container.__name__, {"a": WORDS[0].encode(), "b": WORDS[1].encode()})
        (table,) = source.glob("metadata.*")
        table.write_bytes(table.read_text(encoding="utf-8").encode(encoding))
        assert rows_of(source) == ({"a.png": WORDS[0], "b.png": WORDS[1]}, {})


@pytest.mark.parametrize("container", [in_json_lines, in_csv], ids=lambda made: made.__name__)
def test_a_table_in_utf_16_without_a_mark_is_an_error_that_names_it_and_its_line(
    container: Callable[[Path, Mapping[str, bytes]], Path], tmp_path: Path
) -> None:
    source = container(tmp_path / "source", {"a": b"a cat", "b": b"a dog"})
    (table,) = source.glob("metadata.*")
    table.write_bytes(table.read_text().encode("utf-16-le"))
    with pytest.raises(ConfigError, match=rf"SOURCE {table} cannot be read: line 1 holds NUL bytes"):
        open_rows(source)


def test_lines_of_json_that_are_none_are_listed_under_their_number(tmp_path: Path) -> None:
    deep = "[" * 100_000
    lines = [
        '{"file_name": "a.png", "caption": "a cat"}', "{", "[1]", f'{{"file_name": "a.png", "caption": {deep}', "",
        '{"caption": "a dog"}', '{"file_name": 5, "caption": "a dog"}', '{"file_name": "b.png", "caption": {"x": 1}}',
        '{"file_name": "c.png", "caption": NaN}', '{"file_name": "d.png", "caption": "\\ud800"}',
        '{"file_name": "e.png", "caption": null}', '{"file_name": "f.png", "caption": ["", "two"]}',
        '{"file_name": "a\\u0000.png", "caption": "x"}',
    ]  # fmt: skip
    source = write(tmp_path / "source", {f"{name}.png": PNG for name in "abcdef"})
    (source / "metadata.jsonl").write_text("\n".join(lines))
    used, left = rows_of(source)
    assert used == {"a.png": "a cat", "f.png": "two"}
    assert [name for name in left if "line" in name] == [f"metadata.jsonl line {n}" for n in (2, 3, 4, 6, 7, 13)]
    assert {name: left[f"{name}.png"] for name in "bcde"} == {
        "b": "its caption is no text", "c": "its caption is no text", "d": "its text is not UTF-8", "e": "no caption",
    }  # fmt: skip


def test_hidden_files_are_never_data(tmp_path: Path) -> None:
    rubbish = ("._a", ".ipynb_checkpoints/a-checkpoint", "@eaDir/a", "__MACOSX/a", ".hidden/deep/a", "$RECYCLE.BIN/a")
    files = {"a.png": PNG, "a.txt": b"a cat", "Thumbs.db": b"x", ".DS_Store": b"x"}
    files |= {f"{name}.{end}": content for name in rubbish for end, content in (("png", PNG), ("txt", b"no"))}
    assert rows_of(write(tmp_path / "folder", files)) == ({"a.png": "a cat"}, {})
    tars = write_tar(tmp_path / "tars" / "part.tar", {f"./{name}": content for name, content in files.items()}).parent
    write(tars, {"._part.tar": b"no tar", "__MACOSX/._part.tar": b"no tar"})
    assert rows_of(tars) == ({"a.png": "a cat"}, {})
    table = write(tmp_path / "table", files)
    lines = [json.dumps({"file_name": name, "caption": "a cat"}) for name in ("a.png", "._a.png", "@eaDir/a.png")]
    (table / "metadata.jsonl").write_text("\n".join(lines))
    used, left = rows_of(table)
    assert used == {"a.png": "a cat"}
    assert left == dict.fromkeys(("._a.png", "@eaDir/a.png"), "a hidden file is never data")


def test_every_image_that_pillow_reads_is_used_whatever_its_ending(tmp_path: Path) -> None:
    endings = ["jfif", "jpe", "JPG", "avif", "tif", "TIFF", "bmp", "dib", "webp", "gif", "ppm", "qoi", "jp2", "tga"]
    kinds = {"jp2": "jpeg2000"}
    files = {f"{end}.{end}": picture(kinds.get(end, end.lower())) for end in endings} | {"odd.dat": PNG}
    texts = {f"{name.partition('.')[0]}.{('txt', 'TXT')[place % 2]}": b"a cat" for place, name in enumerate(files)}
    phone = {"phone.heic": b"\0\0\0\x18ftypheic", "phone.txt": b"a dog", "alone.heic": b"x", "lost.txt": b"a bird"}
    wrong = {"wrong.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "wrong.txt": b"drawn by a program"}
    everything = {**files, **texts, **phone, **wrong}
    for source in (write(tmp_path / "folder", everything), write_tar(tmp_path / "part.tar", everything)):
        used, left = rows_of(source)
        assert sorted(used) == sorted(files)
        assert {Path(name).name: reason for name, reason in left.items()} == {
            "phone.heic": "not a file of an image", "alone.heic": "no caption", "wrong.png": "not a file of an image",
            "lost.txt": "a caption without an image",
        }  # fmt: skip


def test_a_tar_loses_no_sample_because_of_another(tmp_path: Path) -> None:
    files = {
        "0.jpg": JPG, "1.jpg": JPG, "1.txt": b"one", "2.PNG": PNG, "2.TXT": b"two", "3.jpg": JPG, "3.txt": b" \n",
        "a.b.jpg": JPG, "a.b.txt": b"dots", "a.c.jpg": JPG, "a.c.txt": b"more dots", "4.jpg": JPG, "4.png": PNG,
        "4.txt": b"beside", "deep/9.jpg": JPG, "deep/9.txt": b"in a folder", "5.txt": b"alone", "6.png": PNG,
        "6.txt": b"late", "7.jpg": b"broken", "7.txt": b"seven", "info.json": b"{}", f"{'long' * 40}.jpg": JPG,
        f"{'long' * 40}.txt": b"long",
    }  # fmt: skip
    used, left = rows_of(write_tar(tmp_path / "part.tar", files))
    assert sorted(used.values()) == ["beside", "dots", "in a folder", "late", "long", "more dots", "one", "two"]
    assert {name.partition("/")[2]: reason for name, reason in left.items()} == {
        "0.jpg": "no caption", "3.jpg": "no caption", "4.png": "the caption belongs to 4.jpg, of the same name",
        "5.txt": "a caption without an image", "7.jpg": "not a file of an image",
    }  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
def test_a_caption_belongs_to_the_image_of_its_name_that_can_be_decoded(packed: bool, tmp_path: Path) -> None:
    """Phones export HEIC and JPEG side by side; features lie beside images in HDF5."""
    files = {"a.heic": b"x", "a.jpg": JPG, "a.txt": b"a cat", "b.h5": b"x", "b.jpg": JPG, "b.txt": b"a dog"}
    source = write_tar(tmp_path / "part.tar", files) if packed else write(tmp_path / "folder", files)
    used, left = rows_of(source)
    assert used == {"a.jpg": "a cat", "b.jpg": "a dog"}
    assert list(left.values()) == ["the caption belongs to a.jpg, of the same name"]


def test_several_tars_are_one_source_and_need_not_be_alike(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", {"1.jpg": JPG, "1.txt": b"one"})
    write_tar(tmp_path / "tars" / "1.tar", {"1.png": PNG, "1.txt": b"two", "2.webp": picture("webp")})
    write_tar(tmp_path / "tars" / "2.tar", {})
    (tmp_path / "tars" / "0.parquet").write_bytes(b"what img2dataset writes beside a tar describes it")
    rows = open_rows(tmp_path / "tars")
    assert [rows.read(number).caption for number in range(len(rows))] == ["one", "two", None]
    assert (rows.image_column, rows.caption_column) == ("jpg", "txt")


@pytest.mark.parametrize(
    ("files", "columns", "expected"),
    [
        ({"s.input.jpg": JPG, "s.outputs.txt": b"a cat"}, ("input.jpg", "outputs.txt"), "a cat"),
        ({"s.INPUT.JPG": JPG, "s.Outputs.txt": b"a cat"}, ("input.jpg", "outputs.txt"), "a cat"),
        ({"s.jpg": JPG, "s.png": PNG, "s.txt": b"a cat"}, ("png", None), "a cat"),
        ({"s.jpg": JPG, "s.json": b'{"caption": "a cat"}'}, (None, None), "a cat"),
        ({"s.jpg": JPG, "s.json": b'{"width": 5, "text": "a cat"}'}, (None, None), "a cat"),
        ({"s.jpg": JPG, "s.json": b'{"a": {"b": "a cat"}}'}, (None, "json.a.b"), "a cat"),
        ({"s.jpg": JPG, "s.json": b'{"a.b": "a cat"}'}, (None, "json.a.b"), "a cat"),
        ({"s.jpg": JPG, "s.meta.json": b'{"Title": "a cat"}'}, (None, "meta.json.Title"), "a cat"),
        ({"s.jpg": JPG, "s.txt": b"no", "s.json": b'{"caption": "a cat"}'}, (None, "json.caption"), "a cat"),
        ({"s.jpg": JPG, "s.caption": b"a cat"}, (None, None), "a cat"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_columns_are_endings_and_keys_in_json(
    packed: bool, files: dict[str, bytes], columns: tuple[str | None, str | None], expected: str, tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "part.tar", files) if packed else write(tmp_path / "folder", files)
    used, _ = rows_of(source, *columns)
    assert list(used.values()) == [expected]


def test_captions_in_json_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    texts = [
        b'{"caption": "a cat"}',
        b"{",
        b"[]",
        b'{"caption": {"x": 1}}',
        b'{"caption": true}',
        b'{"x": 1}',
        b"[" * 9**6,
    ]
    files = {f"{n}.{end}": made for n, text in enumerate(texts) for end, made in (("jpg", JPG), ("json", text))}
    used, left = rows_of(write_tar(tmp_path / "part.tar", files))
    assert used == {"0.jpg": "a cat"}
    assert len(left) == 6


def test_a_tar_that_is_damaged_in_the_middle_is_not_read_up_to_there(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "part.tar", {f"{n}.{end}": PNG for n in range(9) for end in ("png", "txt")})
    content = bytearray(path.read_bytes())
    content[6 * 1024 : 6 * 1024 + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"SOURCE {path} (is damaged at byte|cannot be read)"):
        open_rows(path)


def test_a_tar_that_goes_on_after_a_block_of_zeros_is_not_read_up_to_there(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one.tar", {"0.png": PNG, "0.txt": b"a cat"}).read_bytes()
    two = write_tar(tmp_path / "two.tar", {"1.png": PNG, "1.txt": b"a dog"}).read_bytes()
    joined, hole = bytearray(one + two), bytearray(two)
    hole[1024:1536] = bytes(512)  # the header of 1.txt
    for content, end, place in ((joined, 2048, len(one)), (hole, 1024, 1536)):
        path = tmp_path / "part.tar"
        path.write_bytes(content)
        with pytest.raises(
            ConfigError, match=f"zeros at byte {end:,}, .* goes on at byte {place:,}: .* damaged, or .* joined"
        ):
            open_rows(path)


def test_members_of_a_tar_that_are_no_files_are_listed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "part.tar", {"0.png": PNG, "0.txt": b"a cat", "1.txt": b"one", "2.txt": b"two"})
    with tarfile.open(path, "a") as tar:
        for name, kind, target in (("1.png", tarfile.SYMTYPE, "/etc/passwd"), ("2.png", tarfile.FIFOTYPE, "")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
    used, left = rows_of(path)
    assert used == {"0.png": "a cat"}
    assert left == dict.fromkeys(("part.tar/1.png", "part.tar/2.png"), "it is not a regular file")


def test_links_to_nowhere_fifos_and_linked_folders_are_listed_and_never_block(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "source", dict.fromkeys("abcdef", b"a cat"))
    for name in "abcd":
        (source / f"{name}.png").unlink()
    (source / "a.png").symlink_to("nowhere.png")
    os.mkfifo(source / "b.png")
    (source / "c.png").symlink_to("/dev/zero")
    (source / "d.png").symlink_to("d.png")
    (source / "e.txt").unlink()
    os.mkfifo(source / "e.txt")
    (source / "more").symlink_to(tmp_path)
    (tmp_path / "elsewhere.png").write_bytes(PNG)
    (source / "g.png").symlink_to(tmp_path / "elsewhere.png")
    (source / "g.txt").write_text("what a user links is data")
    used, left = rows_of(source)
    assert used == {"f.png": "a cat", "g.png": "what a user links is data"}
    assert left == {
        "a.png": "it is a link to a file that does not exist", "b.png": "it is a FIFO, not a regular file",
        "c.png": "it is a device, not a regular file", "d.png": "too many levels of symbolic links",
        "e.png": "it is a FIFO, not a regular file", "more": "a link to a folder, which is not followed",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_a_fifo_in_the_place_of_a_table_is_one_line(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a.png": PNG} if name.startswith("metadata") else {"notes.md": b"x"})
    os.mkfifo(source / name)
    for given in (source, source / name):
        with pytest.raises(ConfigError, match=r"FIFO|not a regular file|neither a file nor a folder"):
            open_rows(given)


def outside(tmp_path: Path) -> dict[str, str]:
    """Paths of tables that lead out of their folder, to nowhere, or to what never ends."""
    secret, source = tmp_path / "secret.png", tmp_path / "source"
    secret.write_bytes(PNG)
    source.mkdir()
    (source / "link.png").symlink_to(secret)
    (source / "links").symlink_to(tmp_path)
    os.mkfifo(source / "fifo.png")
    (source / "good.png").write_bytes(PNG)
    far = "it lies outside of the folder of the source"
    return {
        str(secret): far, "../secret.png": far, "link.png": far, "links/secret.png": far, "/dev/zero": far,
        "fifo.png": "it is a FIFO, not a regular file", "gone.png": "no such file or directory",
        ".": "is a directory",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["struct", "string", "csv", "jsonl"])
def test_a_table_names_only_files_of_its_folder(kind: str, tmp_path: Path) -> None:
    reasons = outside(tmp_path)
    paths, source = ["good.png", *reasons], tmp_path / "source"
    if kind == "struct":
        images = pa.array(
            [{"bytes": None, "path": path} for path in paths], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        parquet.write_table(pa.table({"image": images, "caption": ["a cat"] * len(paths)}), source / "part.parquet")
    elif kind == "string":
        parquet.write_table(pa.table({"image": paths, "caption": ["a cat"] * len(paths)}), source / "part.parquet")
    elif kind == "csv":
        (source / "some.csv").write_text("image,caption\n" + "".join(f"{path},a cat\n" for path in paths))
    else:
        lines = [json.dumps({"file_name": path, "caption": "a cat"}) for path in paths]
        (source / "metadata.jsonl").write_text("\n".join(lines))
    used, left = rows_of(source)
    assert used == {"good.png": "a cat"}
    found = {Path(name).name: reason for name, reason in left.items()}
    assert "no caption" not in found.values()  # each image of the folder is that of its row, and not another one
    for path, reason in reasons.items():
        assert reason in found[Path(path).name], path


def test_a_table_of_paths_beside_its_images_is_used_whatever_it_is_called(tmp_path: Path) -> None:
    rows = {"image": ["imgs/0.jpg", "./imgs/1.JPG", "imgs/2.jpg"], "caption": ["zero", "one", None], "width": [1, 2, 3]}
    images = {"imgs/0.jpg": JPG, "imgs/1.JPG": JPG, "imgs/2.jpg": JPG, "imgs/3.jpg": JPG}
    for name in ("p.parquet", "captions.csv", "data.jsonl", "metadata.parquet"):
        source = write(tmp_path / name, images)
        table = pa.table(rows)
        if name.endswith(".parquet"):
            parquet.write_table(table, source / name)
        elif name.endswith(".csv"):
            (source / name).write_text("image,caption\nimgs/0.jpg,zero\n./imgs/1.JPG,one\nimgs/2.jpg\n")
        else:
            (source / name).write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        used, left = rows_of(source)
        assert used == {"0.jpg": "zero", "1.JPG": "one"}, name
        assert left == {"imgs/2.jpg": "no caption", "imgs/3.jpg": "no caption"}, name


def test_columns_of_parquet_may_have_dots_and_rows_may_lack_images(tmp_path: Path) -> None:
    images = pa.array([{"bytes": PNG, "path": None}, None, {"bytes": None, "path": None}, {"bytes": b"x", "path": "x"}])
    table = pa.table({"input.jpg": images, "outputs.txt": [["", "a cat"], ["b"], ["c"], ["d"]]})
    parquet.write_table(table, tmp_path / "part.parquet")
    used, left = rows_of(tmp_path / "part.parquet", "input.jpg", "outputs.txt")
    assert used == {"row 0": "a cat"}
    assert left == {"row 1": "it has no image", "row 2": "it has no image", "x": "not a file of an image"}


def test_a_table_that_holds_its_images_is_not_one_of_paths(tmp_path: Path) -> None:
    images = pa.array([{"bytes": PNG, "path": "x.png"}])
    table = pa.table({"img": images, "filename": ["gone.png"], "path": ["gone.png"], "caption": ["a cat"]})
    parquet.write_table(table, tmp_path / "part.parquet")
    assert rows_of(tmp_path / "part.parquet", "img") == ({"x.png": "a cat"}, {})
    parquet.write_table(table.drop_columns("img").append_column("image", [[7]]), tmp_path / "numbers.parquet")
    (tmp_path / "gone.png").write_bytes(PNG)
    assert rows_of(tmp_path / "numbers.parquet", "path") == ({"gone.png": "a cat"}, {})


def test_a_table_of_paths_may_have_dots_in_its_columns(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG})
    table = pa.table({"input.jpg": ["a.png"], "outputs.txt": ["a cat"], "outputs": [{"txt": "no"}]})
    parquet.write_table(table, tmp_path / "part.parquet")
    assert rows_of(tmp_path / "part.parquet", "input.jpg", "outputs.txt") == ({"a.png": "a cat"}, {})


@pytest.mark.parametrize("content", [b"\xff\xfe\xfd", b"[{}, {}]", b"no json\nat all"])
def test_metadata_without_one_line_that_can_be_read_are_named_with_their_line(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "metadata.jsonl": content})
    with pytest.raises(ConfigError, match=r"metadata\.jsonl cannot be read: ") as caught:
        open_rows(tmp_path)
    assert str(caught.value).isprintable()


def test_packed_files_may_have_endings_in_upper_case(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.TAR", {"1.jpg": JPG, "1.txt": b"one"})
    assert rows_of(tmp_path / "tars") == ({"1.jpg": "one"}, {})
    assert rows_of(tmp_path / "tars" / "0.TAR") == ({"1.jpg": "one"}, {})


def test_a_tar_that_changes_under_way_loses_its_rows_and_not_the_process(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "part.tar", {"1.jpg": JPG, "1.txt": b"one"})
    rows = open_rows(path)
    for content in (b"\xff" * 9999, b"", bytes(9999)):
        path.write_bytes(content)
        assert isinstance(load_row(rows, 0, Sizing(8)), LeftOutRow)


def test_images_beside_tars_have_no_caption_and_are_listed(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", {"1.jpg": JPG, "1.txt": b"one"})
    write(tmp_path / "tars", {"preview.png": PNG})
    assert rows_of(tmp_path / "tars") == ({"1.jpg": "one"}, {"preview.png": "no caption"})


def test_tables_of_the_hubs_cache_name_links_into_its_blobs(tmp_path: Path) -> None:
    repository = write(tmp_path / "datasets--some--pictures", {"blobs/1234": PNG})
    write(repository / "snapshots" / "abc", {"metadata.jsonl": b'{"file_name": "a.png", "caption": "a cat"}'})
    (repository / "snapshots" / "abc" / "a.png").symlink_to("../../blobs/1234")
    assert rows_of(repository / "snapshots" / "abc") == ({"a.png": "a cat"}, {})


def test_a_column_that_is_misspelt_is_not_passed_over(tmp_path: Path) -> None:
    for container in CONTAINERS:
        source = container(tmp_path / container.__name__, {"a": b"a cat"})
        with pytest.raises(ConfigError, match=r"SOURCE|--caption-column 'titel' is not a column"):
            open_rows(source, caption_column="titel")


def test_a_column_that_holds_no_images_is_one_line(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": [1, 2], "caption": ["a", "b"]}), tmp_path / "part.parquet")
    with pytest.raises(ConfigError, match=r"the column 'image' of .* holds no images"):
        open_rows(tmp_path / "part.parquet")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_is_too_large_is_known_by_its_header(tmp_path: Path) -> None:
    """A PNG of 169 megapixels and no pixels: to decode it would be another reason."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    source = in_folder(tmp_path / "source", {"a": b"a cat"})
    (source / "a.png").write_bytes(png)
    assert rows_of(source)[1] == {"a.png": "it has 169.0 megapixels, and at most 67.1 are decoded"}


def test_names_and_captions_that_cannot_be_shown_or_stored_do_no_harm(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "source", {"a": b"a cat", "b\x1b[31m\n": b"", "long": b"x" * 70_000})
    broken = os.fsencode(source) + b"/\xff\xfe.png"
    with open(broken, "wb") as file:
        file.write(PNG)
    used, left = rows_of(source)
    assert used == {"a.png": "a cat"}
    assert sorted(left) == ["\\udcff\\udcfe.png", "b\\x1b[31m\\n.png", "long.png"]
    json.dumps(left, ensure_ascii=False).encode()


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null", "x" * 5000, "/" + "x" * 5000, "a\0b", ""])
def test_a_source_that_is_no_file_and_no_folder_is_one_line(source: str) -> None:
    with pytest.raises(ConfigError, match=r"^SOURCE ") as caught:
        open_source(source, None, None, None, None)
    assert "\n" not in str(caught.value)


def test_a_socket_is_no_image(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "s", {"a": b"a cat", "b": b"a dog"})
    (source / "b.png").unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(source / "b.png"))
    assert list(rows_of(source)[1]) == ["b.png"]


def test_a_row_of_csv_with_a_comma_that_is_not_quoted_is_listed_and_no_caption_is_cut(tmp_path: Path) -> None:
    lines = b'file_name,caption\n0.png,"a cat, asleep"\n1.png,a cat, asleep\n2.png,a dog,\n3.png,%s\n' % (
        b"y" * 200_000
    )
    source = write(tmp_path / "s", {f"{i}.png": PNG for i in range(4)} | {"metadata.csv": lines})
    used, listed = rows_of(source)
    assert used == {"0.png": "a cat, asleep", "2.png": "a dog"}
    assert listed["metadata.csv line 3"] == "it has more cells than there are columns: quote a text that holds commas"
    assert listed["3.png"] == "its caption is longer than 65,536 characters"


def test_a_quote_that_is_not_closed_makes_no_caption_of_other_rows(tmp_path: Path) -> None:
    lines = [
        "file_name,caption", 'a.png,"a cat', "b.png,a dog", 'c.png,"a bird"', 'd.png,"a ""red"" fish"',
        'e.png,a 5" nail', 'f.png,"Look" at it', 'g.png,"a', ' boat"', 'h.png,"open', "i.png,last",
    ]  # fmt: skip
    source = write(tmp_path / "s", {f"{name}.png": PNG for name in "abcdefghi"})
    (source / "metadata.csv").write_text("\n".join(lines))
    used, listed = rows_of(source)
    assert used == {"d.png": 'a "red" fish', "e.png": 'a 5" nail', "g.png": "a\n boat"}
    wrong = [name for name, reason in listed.items() if "its quotes are not those of CSV: close each" in reason]
    assert wrong == ["metadata.csv line 4", "metadata.csv line 7", "metadata.csv line 11"]
    assert [name for name in listed if name not in wrong] == [f"{name}.png" for name in "abcfhi"]


def test_a_column_or_a_key_that_is_there_twice_is_not_taken(tmp_path: Path) -> None:
    pictures = {"0.png": PNG, "1.png": PNG}
    table = {"metadata.csv": b"file_name,caption,caption\n0.png,a cat,a dog\n"}
    with pytest.raises(ConfigError, match=r"metadata\.csv cannot be read: line 1 has the column 'caption' twice\."):
        open_rows(write(tmp_path / "csv", pictures | table))
    lines = b'{"file_name": "0.png", "text": "a cat"}\n{"file_name": "1.png", "text": "a cat", "text": "a dog"}\n'
    used, listed = rows_of(write(tmp_path / "json", pictures | {"metadata.jsonl": lines}))
    assert used == {"0.png": "a cat"}
    assert listed["metadata.jsonl line 2"] == "the key 'text' is there twice"


def test_a_parquet_file_without_rows_costs_no_other(tmp_path: Path) -> None:
    file = in_table(tmp_path / "s", {"0": b"a cat", "1": b"a dog"})
    parquet.write_table(parquet.read_table(file).slice(0, 0), tmp_path / "s" / "a.parquet")
    assert len(open_rows(tmp_path / "s")) == 2
    file.unlink()
    with pytest.raises(ConfigError, match=r"has no rows\."):
        open_rows(tmp_path / "s")


def test_a_column_without_a_name_cuts_no_caption(tmp_path: Path) -> None:
    """The first column is the index that pandas writes."""
    lines = b',file_name,caption\n0,a.png,a red cat, sitting\n1,b.png,"a dog, asleep"\n2,c.png,a bird,\n'
    source = write(tmp_path / "s", {f"{name}.png": PNG for name in "abc"} | {"metadata.csv": lines})
    used, listed = rows_of(source)
    assert used == {"b.png": "a dog, asleep", "c.png": "a bird"}
    assert listed["metadata.csv line 2"] == "it has more cells than there are columns: quote a text that holds commas"


@pytest.mark.parametrize("name", ["birds [v2]", "[ab]", "a*b", "what?", "**"])
def test_a_path_with_the_signs_of_a_pattern_is_that_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = in_table(tmp_path / name, {"x": b"a cat", "y": b"a dog"})
    for other in ("a", "axb", "whats"):
        in_table(tmp_path / other, {"z": b"another"})
    wanted = {"x.png": "a cat", "y.png": "a dog"}
    assert rows_of(file) == (wanted, {})
    assert rows_of(file.parent) == (wanted, {})
    monkeypatch.chdir(file.parent)
    assert rows_of(Path(file.name)) == (wanted, {})
