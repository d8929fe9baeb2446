"""`ecdit data prepare --vae none`: images as they are, with classes; mirrored images; what is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from experiments.config.overrides import load_config
from experiments.config.prepared_set import FORMS_VERSION, fingerprint_of, read_index
from experiments.data.loader import TrainStream, validation_set
from experiments.data.prepare.encoding import Sizing, decode
from experiments.data.prepare.job import Launch, prepare
from experiments.data.prepare.request import Request
from experiments.data.prepare.shards import SetFolder, ShardTask
from experiments.data.prepare.text_columns import names_side
from experiments.data.sources.mapped_shards import check_content, check_tensors
from experiments.data.sources.pixels import Pixels
from experiments.errors import ConfigError
from tests.real_images import tensors_of
from tests.unit.data.prepare.test_source_rows import without_privileges

SIDE = 8
NAMES = ("arrow left", "ball")


def request_of(source: Path, **settings: Any) -> Request:
    small: dict[str, Any] = {"text": "labels", "image_size": SIDE, "shard_images": 4, "batch_images": 3}
    return Request(source=str(source), **(small | settings))


def picture(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Another one for each number, and unlike its mirror image; each value is constant over 2 x 2 pixels."""
    small = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return small.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(16):
        inside = folder / NAMES[number % 2]
        inside.mkdir(exist_ok=True)
        Image.fromarray(picture(number)).save(inside / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def pixel_set(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pixels") / "set"
    prepare(request_of(source, validation_images=4, flip=True), out)
    return out


def settings(folder: Path, *more: str) -> list[str]:
    return [f"data.path={folder}", "model.block=dit", "train.batch_images=6", *more]


def test_pixels_are_the_mean_over_the_area_of_each_and_read_back_exactly(pixel_set: Path) -> None:
    index = read_index(pixel_set)
    assert (index.images, index.vae, index.scaling_factor, index.channels, index.latent_size) == (
        "pixels", None, None, 3, SIDE,
    )  # fmt: skip
    assert (index.schema_version, index.background, index.flips) == (FORMS_VERSION, "#ffffff", True)
    stored, rows = (tensors_of(pixel_set, "validation", name) for name in ("pixels_NCHW", "row_N"))
    drawn = [picture(2 * (row % 8) + row // 8)[::2, ::2] for row in rows.tolist()]  # rows are sorted by class
    assert torch.equal(stored, torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2))
    config = load_config(settings(pixel_set))
    assert (config.data.name, config.data.image_size, config.data.num_classes) == ("pixels", SIDE, 2)
    (batch,) = validation_set(config)
    torch.testing.assert_close(batch.pixels_BCHW, stored / 127.5 - 1)
    assert Pixels(config.data).decoder(None, torch.device("cpu"))(batch.pixels_BCHW * 2).abs().max() == 1


def test_training_mirrors_half_of_the_images_but_none_whose_text_names_a_side(pixel_set: Path) -> None:
    config = load_config(settings(pixel_set, "train.batch_images=12", "train.images=480"))
    stored = tensors_of(pixel_set, "train", "pixels_NCHW") / 127.5 - 1
    labels = tensors_of(pixel_set, "train", "label_N")
    stream, mirrored = TrainStream(config), []
    for first in range(0, 480, 12):
        batch = stream.batch(first)
        same = (batch.pixels_BCHW - stored[batch.index_B]).abs().amax(dim=(1, 2, 3)) < 1e-6
        flipped = (batch.pixels_BCHW - stored[batch.index_B].flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-6
        assert (same ^ flipped).all()
        assert not flipped[labels[batch.index_B] == 0].any()
        mirrored += flipped[labels[batch.index_B] == 1].tolist()
        assert torch.equal(batch.pixels_BCHW, TrainStream(config).batch(first).pixels_BCHW)
    assert 0.35 < np.mean(mirrored) < 0.65


def test_the_same_command_mends_a_set_with_the_same_bytes(pixel_set: Path, source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pixel_set, tmp_path / "set")
    (copy / "train-00001.safetensors").unlink()
    request = request_of(source, validation_images=4, flip=True)
    made = prepare(request, copy, num_processes=2)
    assert made is not None
    assert made.num_files_made == 1
    assert made.index.fingerprint == read_index(pixel_set).fingerprint
    with pytest.raises(ConfigError, match="was begun with another background: white there, black here"):
        prepare(request_of(source, validation_images=4, flip=True, background="black"), copy)


@pytest.mark.parametrize(("background", "seen"), [("white", 255), ("#102030", 0x10)])
def test_transparency_becomes_the_background(background: str, seen: int, tmp_path: Path) -> None:
    for number in range(2):
        inside = tmp_path / "source" / f"class {number}"
        inside.mkdir(parents=True)
        Image.new("RGBA", (16, 16), (0, 255, 0, 0)).save(inside / "a.png")
    prepare(request_of(tmp_path / "source", background=background, validation_images=1), tmp_path / "set")
    assert (tensors_of(tmp_path / "set", "train", "pixels_NCHW")[:, 0] == seen).all()


def png(depth: int, color_type: int, transparent: bytes, rows: Sequence[bytes]) -> bytes:
    """A file of 8 x 8 pixels with a transparent colour, as PIL does not write it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 8, depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


GREY, COLORED = 0, 2


@pytest.mark.parametrize(
    ("depth", "color_type", "transparent", "row", "opaque"),
    [
        (2, GREY, b"\0\1", b"\x55\xff", 255),  # four pixels of 1 and four of 3
        (4, GREY, b"\0\x0f", b"\xff\xff\x11\x11", 17),
        (8, GREY, b"\0\x0f", b"\x0f" * 4 + b"\x11" * 4, 17),
        (16, COLORED, b"\xab\xcd" * 3, b"\xab\xcd" * 12 + b"\xcd\xab" * 12, 0xCD),
    ],
)
def test_a_transparent_color_is_found_whatever_the_depth_of_a_png(
    depth: int, color_type: int, transparent: bytes, row: bytes, opaque: int
) -> None:
    decoded = decode(png(depth, color_type, transparent, [row] * 8), Sizing(8, "#ff0000"))
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 8, 4)
    assert torch.equal(decoded[..., :4], red)
    assert torch.allclose(decoded[..., 4:], torch.tensor(opaque / 127.5 - 1))


def test_a_file_without_permission_is_made_again_and_its_check_is_one_line(
    pixel_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pixel_set, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    shard = next(shard for shard in read_index(Path()).shards if shard.split == "train")
    rows = load_file(shard.file)["row_N"].tolist()
    note = json.loads(Path(shard.file).with_suffix(".json").read_text())
    folder, task = SetFolder(Path(), note["request"]), ShardTask(Path(shard.file).stem, "train", tuple(rows))
    assert folder.is_made(task, verify=True)
    os.chmod(shard.file, 0)
    with without_privileges():
        assert not folder.is_made(task, verify=True)
        with pytest.raises(ConfigError, match=rf"the shard {shard.file} cannot be read: permission denied\."):
            check_content(Path(), shard)


def test_a_shard_with_other_tensors_than_the_index_says_is_damaged(pixel_set: Path, tmp_path: Path) -> None:
    index = read_index(pixel_set)
    check_tensors(pixel_set, index, index.shards[0])
    with pytest.raises(ConfigError, match="its tensors are not those of the index"):
        check_tensors(pixel_set, index.model_copy(update={"latent_size": 4}), index.shards[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("train.batch_images=13",), "train.batch_images=13 is more than the 12 training images of"),
        (("data.name=latents",), "which holds pixels. Use data.name=pixels, or leave it out."),
        (("data.image_size=16",), "data.image_size=16 is not that of the data set"),
        (("model.block=pixart",), "data.num_classes=2 means classes"),
        (("eval.metric_images=8",), "has no network of features, in which its pictures are measured. Train it with"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(more: tuple[str, ...], message: str, pixel_set: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(settings(pixel_set, *more))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"images": "latents"}, {"scaling_factor": 1.0}, {"class_names": None}])
def test_an_index_that_is_neither_one_form_nor_the_other_is_damaged(
    change: dict[str, Any], pixel_set: Path, tmp_path: Path
) -> None:
    content = json.loads((pixel_set / "index.json").read_text()) | change
    content["fingerprint"] = fingerprint_of(content)
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"index\.json is damaged\."):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"flip": True, "vae": "v"},
            "--flip does not fit --vae: the latents of a mirrored image are others. Use --vae",
        ),
        ({"background": "whyte"}, "--background whyte is not a colour. Use for example white, black or #808080."),
        ({"background": "#ffffff00"}, "--background #ffffff00 is not a colour."),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        request_of(Path("s"), **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["A circle left of a bar", "right-facing fist", "right_arrow", "turning clockwise"])
def test_a_text_that_names_a_side_is_known(text: str) -> None:
    assert names_side(text)


@pytest.mark.parametrize("text", ["a bright copyright sign", "an upright piano", "leftover"])
def test_other_words_name_no_side(text: str) -> None:
    assert not names_side(text)


def test_a_folder_inside_the_source_is_refused_also_through_links(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    link = tmp_path / "link"
    link.symlink_to(copy)
    for given, out in ((copy, copy / "data"), (copy, link / "data"), (link, copy / "ball" / "x"), (copy, copy)):
        with pytest.raises(ConfigError) as caught:
            prepare(request_of(given), out)
        assert str(caught.value) == (
            f"OUT {out} lies inside SOURCE {given}, whose files it would change. Name a folder beside it."
        )
    assert sorted(path.name for path in copy.iterdir()) == list(NAMES)
    for out in (copy / ".hidden", tmp_path / "source-set"):  # hidden files are none of the source
        for again in (False, True):
            made = prepare(request_of(copy), out)
            assert made is not None
            assert (made.num_files_made == 0) == again


def test_a_request_that_another_process_writes_meanwhile_is_not_in_the_way(
    pixel_set: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look at the request came before the other process had written it."""
    copy = shutil.copytree(pixel_set, tmp_path / "set")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    made = prepare(request_of(source, validation_images=4, flip=True), copy)
    assert made is not None
    assert made.num_files_made == 0


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.multi])])
def test_files_that_others_make_after_all_are_not_made_again(
    num_processes: int, pixel_set: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process has the shards 0 and 2 of four; another one brings the third while the first lost patience."""
    monkeypatch.setattr("experiments.data.prepare.job.PATIENCE_SECONDS", 0.1)
    out, late = tmp_path / "set", "train-00000"
    copied: list[int] = []

    def bring(line: str) -> None:
        if line.endswith("making the rest here."):
            for path in pixel_set.glob(f"{late}.*"):
                shutil.copy(path, out)
            copied.append((out / f"{late}.safetensors").stat().st_ino)

    request = request_of(source, validation_images=4, flip=True)
    assert prepare(request, out, num_processes, say=bring, launch=Launch(0, 2, 0)) is not None
    assert copied == [(out / f"{late}.safetensors").stat().st_ino]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in pixel_set.iterdir()
    }
