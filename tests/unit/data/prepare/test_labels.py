"""`ecdit data prepare --text labels`: classes of folders and of columns, and what has no class."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.config.overrides import load_config
from experiments.config.prepared_set import MAX_CLASSES, read_index
from experiments.data.loader import TrainStream, validation_set
from experiments.data.prepare.encoding import LeftOutRow, Sizing, load_row
from experiments.data.prepare.encoding_processes import open_request
from experiments.data.prepare.index_writer import LEFT_OUT_FILE
from experiments.data.prepare.job import prepare
from experiments.data.prepare.request import Request
from experiments.data.sources.image_source import class_names
from experiments.data.sources.latents import Latents
from experiments.data.sources.mapped_shards import check_tensors
from experiments.errors import ConfigError
from tests.real_images import (
    CLASS_NAMES,
    as_bytes,
    captioned_images,
    labelled_request,
    tensors_of,
    write_class_folders,
    write_metadata,
    write_sidecars,
    write_webdataset,
)

Folders = dict[str, str]
PNG = as_bytes(captioned_images(1)[0][0], "png")


def request_of(source: Path, **settings: object) -> Request:
    return Request(source=str(source), vae="unused", text="labels", **settings)  # type: ignore[arg-type]


def found(source: Path, **settings: object) -> tuple[tuple[str, ...], list[str], dict[str, str]]:
    """The classes of a source, the class of each usable row, and the rows that are left out with the reasons."""
    rows = open_request(request_of(source, **settings))
    loaded = [load_row(rows, number, Sizing(8)) for number in range(len(rows))]
    left = {one.name: one.reason for one in loaded if isinstance(one, LeftOutRow)}
    assert rows.class_names is not None
    return rows.class_names, [one.caption for one in loaded if not isinstance(one, LeftOutRow)], left


def table_of(folder: Path, labels: list[object], column: str = "label") -> Path:
    """A CSV that names an image for each label."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file_name", column])
    for place, label in enumerate(labels):
        (folder / f"{place}.png").write_bytes(PNG)
        writer.writerow([f"{place}.png", label])
    (folder / "metadata.csv").write_text(text.getvalue())
    return folder


def test_folders_are_classes_in_the_order_of_their_names(labelled_set: Path) -> None:
    index = read_index(labelled_set)
    assert index.class_names == CLASS_NAMES
    assert (index.t5, index.clip, index.empty_caption, index.text_width) == (None, None, None, None)
    for split in ("train", "validation"):
        rows, labels = (tensors_of(labelled_set, split, name).tolist() for name in ("row_N", "label_N"))
        # Rows are sorted by path, so that all images of a class stand together.
        assert labels == [row // 10 for row in rows]
    assert not list(labelled_set.glob("empty-caption*"))


def test_images_outside_of_classes_and_classes_without_images_are_listed(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", 6)
    (source / "loose.png").write_bytes(PNG)
    (source / "empty").mkdir()
    (source / "notes").mkdir()
    (source / "notes" / "a.txt").write_text("no image")
    (source / ".hidden").mkdir()
    names, labels, left = found(source)
    assert names == CLASS_NAMES
    assert sorted(labels) == sorted(CLASS_NAMES * 2)
    assert left == {
        "loose.png": "an image outside of the folders of classes",
        "empty/": "a class folder without images",
        "notes/": "a class folder without images",
    }


def test_a_folder_whose_name_is_no_text_is_listed_by_its_images(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", 3)
    broken = source / "caf\udce9"
    broken.mkdir()
    (broken / "a.png").write_bytes(PNG)
    names, _, left = found(source)
    assert names == CLASS_NAMES
    assert list(left.values()) == ["its text is not UTF-8"]


def test_words_in_a_column_are_sorted_and_rows_without_one_are_listed(tmp_path: Path) -> None:
    names, labels, left = found(table_of(tmp_path / "t", ["dog", "cat", "", "dog", " cat "]))
    assert names == ("cat", "dog")
    assert labels == ["dog", "cat", "dog", "cat"]
    assert left == {"2.png": "no label"}


def test_whole_numbers_are_the_numbers_of_the_classes_within_limits(tmp_path: Path) -> None:
    names, labels, left = found(table_of(tmp_path / "t", [2, 0, "03", -1, MAX_CLASSES]))
    assert names == ("0", "1", "2", "3")
    assert labels == ["2", "0", "3"]
    assert left == {
        "3.png": "its label -1 is out of range: classes are 0 to 65535",
        "4.png": "its label 65536 is out of range: classes are 0 to 65535",
    }


def test_whole_numbers_that_a_table_of_text_writes_as_floats_are_the_same_numbers(tmp_path: Path) -> None:
    """pandas does, where one of the column is missing."""
    names, labels, left = found(table_of(tmp_path / "t", ["2.0", "10.0", "", "0."]))
    assert names == tuple(map(str, range(11)))
    assert labels == ["2", "10", "0"]
    assert left == {"2.png": "no label"}
    assert found(table_of(tmp_path / "versions", ["1.0", "1.5"]))[0] == ("1.0", "1.5")


def test_a_class_without_a_name_is_no_class(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[" ", "dog", "cat"])})
    rows = [{"image": {"bytes": PNG, "path": f"{label}.png"}, "label": label} for label in (0, 1, 2)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "s.parquet")
    assert found(tmp_path / "s.parquet") == (("dog", "cat"), ["dog", "cat"], {"0.png": "no label"})


def test_a_column_is_named_where_it_has_another_name(tmp_path: Path) -> None:
    source = table_of(tmp_path / "t", ["b", "a"], column="breed")
    with pytest.raises(ConfigError, match=r"has no labels: its columns are file_name, breed\. Name the right one with"):
        found(source)
    with pytest.raises(ConfigError, match=r"--label-column 'bred' is not a column of .* Did you mean 'breed'\?"):
        found(source, label_column="bred")
    assert found(source, label_column="breed")[:2] == (("a", "b"), ["b", "a"])


def test_a_column_beside_folders_of_classes_counts_where_it_is_named(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", 3)
    (source / "cat" / "a.png").write_bytes(PNG)
    (source / "table.csv").write_text("file_name,label\ncat/a.png,tiger\n")
    assert found(source)[0] == CLASS_NAMES
    names, labels, left = found(source, label_column="label")
    assert (names, labels) == (("tiger",), ["tiger"])
    assert set(left.values()) == {"no label"}


@pytest.mark.parametrize("others", [["ant", "zebra"], ["zebra", "ant", "bee"]])
def test_files_whose_numbers_stand_for_other_classes_are_refused(others: list[str], tmp_path: Path) -> None:
    """Read with the classes of the first file, the images of the second would have wrong labels."""
    import datasets

    for name, classes in (("a", ["zebra", "ant"]), ("b", others)):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
        rows = [{"image": {"bytes": PNG, "path": f"{name}.png"}, "label": 0}]
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ConfigError, match=r"The classes of the column 'label' in b\.parquet are not"):
        found(tmp_path)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_data_set_that_orders_its_classes_keeps_their_order(ordered: bool, tmp_path: Path) -> None:
    import datasets

    names = ["zebra", "ant", "bee"]
    kind = datasets.ClassLabel(names=names) if ordered else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    numbers = [0, 2, -1]
    rows = [{"image": {"bytes": PNG, "path": f"{place}.png"}, "label": label} for place, label in enumerate(numbers)]
    file = tmp_path / "s.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    found_names, labels, left = found(file)
    if ordered:
        assert (found_names, labels, left) == (tuple(names), ["zebra", "bee"], {"2.png": "no label"})
    else:
        assert (found_names, labels) == (("0", "1", "2"), ["0", "2"])
        assert left == {"2.png": "its label -1 is out of range: classes are 0 to 65535"}


def test_the_classes_of_a_webdataset_are_files_or_keys_beside_its_images(tmp_path: Path) -> None:
    from tests.unit.data.prepare.test_sources import write_tar

    plain = {f"{n}.{end}": content for n in range(3) for end, content in (("png", PNG), ("cls", b"%d" % (n % 2)))}
    assert found(write_tar(tmp_path / "a.tar", plain))[:2] == (("0", "1"), ["0", "1", "0"])
    keyed = {"a.png": PNG, "a.json": b'{"label": "dog"}', "b.png": PNG, "b.json": b"{}"}
    names, labels, left = found(write_tar(tmp_path / "b.tar", keyed))
    assert (names, labels, list(left.values())) == (("dog",), ["dog"], ["no label"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["", ""], "has in label no label of a class. Name the column of classes with --label-column."),
        ([-1, MAX_CLASSES], "has in label no label of a class."),
        ([f"caption {n}" for n in range(5)], "has in label 5 labels, and at most 4 are classes."),
    ],
)
def test_a_column_that_holds_no_classes_is_one_line(
    labels: list[object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = table_of(tmp_path / "t", labels)
    if len(labels) == 5:
        monkeypatch.setattr("experiments.data.prepare.labels.MAX_CLASSES", 4)
    with pytest.raises(ConfigError) as caught:
        open_request(request_of(source))
    assert message in str(caught.value)


def test_two_classes_of_one_name_are_one_line(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", 3)
    shutil.copytree(source / "cat", source / " cat")
    with pytest.raises(ConfigError, match=r"has in folders two classes of one name\. Give them different names\."):
        open_request(request_of(source))


def test_sources_without_labels_say_where_they_would_be(tmp_path: Path) -> None:
    flat = write_sidecars(tmp_path / "flat", 2)
    with pytest.raises(ConfigError, match=r"has no labels\. Put the images of each class into a folder of its name"):
        open_request(request_of(flat))
    with pytest.raises(ConfigError, match=r"has no labels: its columns are file_name, caption\."):
        open_request(request_of(write_metadata(tmp_path / "captioned", 2)))
    with pytest.raises(ConfigError, match="no image has a file of its name with an ending of labels"):
        open_request(request_of(write_webdataset(tmp_path / "tar", 2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--t5 is missing, which encodes captions. Name it, or use --text static or --text labels."),
        (
            {"t5": "t"},
            "--clip is missing, which encodes captions. Name it, or use --text t5, --text static or --text labels.",
        ),
        (
            {"t5": "t", "clip": "c", "label_column": "x"},
            "--label-column does not fit --text captions. Leave it out, or",
        ),
        ({"text": "labels", "t5": "t"}, "--t5 does not fit --text labels. Leave it out."),
        ({"text": "labels", "caption_column": "x"}, "--caption-column does not fit --text labels. Leave it out."),
    ],
)
def test_options_that_do_not_fit_the_text_are_one_line(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Request(source="s", vae="v", **settings)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_set_that_was_stopped_ends_with_the_same_files_and_keeps_its_classes(
    labelled_set: Path, encoder_folders: Folders, tmp_path: Path
) -> None:
    source, out = shutil.copytree(labelled_set.parent / "source", tmp_path / "source"), tmp_path / "set"
    request = labelled_request(source, encoder_folders, validation_images=4)

    def stop(done: int, total: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(request, out, on_rows=stop)
    renamed = (source / "dog").rename(source / "a dog")
    with pytest.raises(ConfigError, match=r"was begun with another class_order: its content is not the same\."):
        prepare(request, out)
    renamed.rename(source / "dog")
    assert 0 < prepare(request, out).num_files_made < 5
    names = {path.name for path in labelled_set.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    assert read_index(out).fingerprint == read_index(labelled_set).fingerprint
    for name in names - {"index.json"}:  # it names the source
        assert (out / name).read_bytes() == (labelled_set / name).read_bytes()
    assert prepare(request, out).num_files_made == 0


def test_a_set_of_captions_is_not_continued_with_labels(
    latent_set: Path, encoder_folders: Folders, tmp_path: Path
) -> None:
    out = shutil.copytree(latent_set, tmp_path / "set")
    request = labelled_request(write_class_folders(tmp_path / "s", 9), encoder_folders)
    with pytest.raises(ConfigError, match="was begun with another text: captions there, labels here"):
        prepare(request, out)


def test_what_was_left_out_is_written_down(encoder_folders: Folders, tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "source", 9)
    (source / "loose.png").write_bytes(PNG)
    index = prepare(labelled_request(source, encoder_folders, validation_images=2), tmp_path / "set").index
    assert (index.num_damaged, sum(shard.num_images for shard in index.shards)) == (1, 9)
    assert json.loads((tmp_path / "set" / LEFT_OUT_FILE).read_text())["name"] == "loose.png"


def test_a_batch_has_the_classes_of_its_images_and_the_null_class_where_they_are_dropped(labelled_set: Path) -> None:
    settings = ["model.block=dit", "data.name=latents", f"data.path={labelled_set}", "train.batch_images=26"]
    config = load_config([*settings, "train.caption_dropout=0.5"])
    assert (config.data.num_classes, config.eval.images) == (3, 4)
    batch = TrainStream(config).batch(0)
    stored = tensors_of(labelled_set, "train", "label_N")[batch.index_B]
    assert batch.label_B is not None
    dropped_B = batch.label_B == 3
    assert 0 < dropped_B.sum() < 26
    assert torch.equal(batch.label_B[~dropped_B], stored[~dropped_B])
    (validation,) = validation_set(config)
    assert validation.label_B is not None
    assert validation.label_B.tolist() == tensors_of(labelled_set, "validation", "label_N").tolist()
    assert Latents(config.data).validation_labels(range(4)) == validation.label_B.tolist()
    assert class_names(config.data) == CLASS_NAMES


def test_blocks_and_data_sets_that_do_not_fit_are_one_line(labelled_set: Path, latent_set: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["data.name=latents", f"data.path={labelled_set}"])
    assert str(caught.value) == (
        "data.num_classes=3 means classes, and model.block=pixart is conditioned on captions. Use model.block=dit."
    )
    with pytest.raises(ConfigError) as caught:
        load_config(["model.block=dit", "data.name=latents", f"data.path={latent_set}"])
    assert str(caught.value) == (
        f"model.block=dit is conditioned on classes, which the data set {latent_set} does not have. Prepare it with "
        "`ecdit data prepare --text labels`, or use model.block=pixart or mmdit."
    )


@pytest.mark.parametrize("change", ["label", "names", "type"])
def test_labels_and_classes_that_do_not_belong_together_are_found(
    change: str, labelled_set: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(labelled_set, tmp_path / "set")
    settings = ["model.block=dit", "data.name=latents", f"data.path={copied}"]
    config = load_config(settings)
    index, shard = read_index(copied), next(each for each in read_index(copied).shards if each.split == "train")
    if change == "names":  # the same shards, with the classes in another order
        content = json.loads((copied / "index.json").read_text())
        content["class_names"].reverse()
        (copied / "index.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="was changed after it was written: its fingerprint is another one"):
            Latents(config.data)
        return
    tensors = load_file(copied / shard.file)
    tensors["label_N"] = tensors["label_N"] + 3 if change == "label" else tensors["label_N"].int()
    save_file(tensors, copied / shard.file)
    with pytest.raises(ConfigError, match="is damaged: its tensors are not those of the index"):
        check_tensors(copied, index, shard)


def test_an_index_with_captions_and_classes_is_damaged(labelled_set: Path, tmp_path: Path) -> None:
    from experiments.config.prepared_set import fingerprint_of

    copied = shutil.copytree(labelled_set, tmp_path / "set")
    content = json.loads((copied / "index.json").read_text()) | {"text_width": 8}
    content["fingerprint"] = fingerprint_of(content)
    (copied / "index.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"index\.json is damaged"):
        read_index(copied)
