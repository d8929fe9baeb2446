"""`ecdit data prepare` with real image files and the real classes of diffusers and transformers, made small."""

from __future__ import annotations

import json
import re
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

from experiments.config.prepared_set import read_index
from experiments.data.prepare.encoding import Sizing, decode
from experiments.data.prepare.index_writer import LEFT_OUT_FILE
from experiments.data.prepare.job import prepare
from experiments.errors import ConfigError
from tests.real_images import (
    CHANNELS,
    LATENT_SIZE,
    POOLED_WIDTH,
    SOURCES,
    TEXT_WIDTH,
    as_bytes,
    captioned_images,
    save_as_published,
    save_sentencepiece_t5,
    small_request,
    tensors_of,
    write_metadata,
    write_parquet,
    write_sidecars,
    write_webdataset,
)

Folders = dict[str, str]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def captions_of(folder: Path, split: str) -> list[str]:
    starts, content = (tensors_of(folder, split, f"caption_{part}") for part in ("start_N1", "bytes"))
    assert starts[0] == 0
    return [bytes(content[a:b].tolist()).decode() for a, b in pairwise(starts) if b > a]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_its_images_and_captions(
    kind: str, encoder_folders: Folders, tmp_path: Path
) -> None:
    source = SOURCES[kind](tmp_path / "source", 10)
    out = tmp_path / "set"
    index = prepare(small_request(source, encoder_folders, validation_images=2, shard_images=99), out).index
    rows = {split: tensors_of(out, split, "row_N").tolist() for split in ("train", "validation")}
    assert sorted(rows["train"] + rows["validation"]) == list(range(10))
    assert (index.num_images("train"), index.num_images("validation"), index.num_damaged) == (8, 2, 0)
    wanted = [caption for _, caption in captioned_images(10)]
    for split, numbers in rows.items():
        assert captions_of(out, split) == [wanted[number] for number in numbers]


def test_latents_and_features_are_those_of_the_networks(latent_set: Path, encoder_folders: Folders) -> None:
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    shard = load_file(latent_set / "train-00000.safetensors")
    row, (start, stop) = int(shard["row_N"][2]), shard["text_start_N1"][2:4].tolist()
    _, caption = captioned_images(row + 1)[row]
    file = latent_set.parent / "source" / f"{row:03d}.{('png', 'jpg')[row % 2]}"
    vae = AutoencoderKL.from_pretrained(encoder_folders["vae"], low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        posterior = vae.encode(decode(file.read_bytes(), Sizing(32))[None]).latent_dist
        tokens = AutoTokenizer.from_pretrained(encoder_folders["t5"])(
            caption, truncation=True, max_length=12, return_tensors="pt"
        )
        features = T5EncoderModel.from_pretrained(encoder_folders["t5"]).eval()(tokens["input_ids"]).last_hidden_state
        words = AutoTokenizer.from_pretrained(encoder_folders["clip"])(
            caption, truncation=True, max_length=16, return_tensors="pt"
        )
        pooled = CLIPTextModel.from_pretrained(encoder_folders["clip"]).eval()(**words).pooler_output
    close = {"atol": 2e-3, "rtol": 2e-3}
    torch.testing.assert_close(shard["latent_mean_NCHW"][2].float(), posterior.mean[0], **close)
    torch.testing.assert_close(shard["latent_std_NCHW"][2].float(), posterior.std[0], **close)
    torch.testing.assert_close(shard["text_MV"][start:stop].float(), features[0], **close)
    torch.testing.assert_close(shard["pooled_NU"][2].float(), pooled[0], **close)


def test_the_index_says_what_is_in_the_folder(latent_set: Path) -> None:
    index = read_index(latent_set)
    assert (index.channels, index.latent_size) == (CHANNELS, LATENT_SIZE)
    assert (index.text_width, index.pooled_width) == (TEXT_WIDTH, POOLED_WIDTH)
    assert (index.scaling_factor, index.shift_factor) == (0.5, 0.25)
    assert [shard.num_images for shard in index.shards] == [4, 8, 8, 8, 8, 4]
    assert load_file(latent_set / index.empty_caption.file)["text_start_N1"].tolist() == [0, 1]  # its end token alone
    assert sorted(path.name for path in latent_set.iterdir() if path.suffix == ".safetensors") == sorted(
        file.file for file in index.files()
    )


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_files(
    latent_set: Path, encoder_folders: Folders, tmp_path: Path
) -> None:
    request = small_request(latent_set.parent / "source", encoder_folders, validation_images=4)

    def stop(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(request, tmp_path / "set", on_rows=stop)
    with pytest.raises(ConfigError, match="is not finished"):
        read_index(tmp_path / "set")
    seen: list[int] = []
    again = prepare(request, tmp_path / "set", on_rows=lambda done, total: seen.append(done))
    assert 16 <= seen[0] <= 20
    assert seen[-1] == 40
    assert again.num_files_made < 7
    assert shard_bytes(tmp_path / "set") == shard_bytes(latent_set)


def test_a_finished_set_is_left_alone_and_a_damaged_one_is_mended(encoder_folders: Folders, tmp_path: Path) -> None:
    request = small_request(write_sidecars(tmp_path / "source", 12), encoder_folders, validation_images=1)
    out = tmp_path / "set"
    made = prepare(request, out)
    before = shard_bytes(out)
    assert prepare(request, out).num_files_made == 0
    (out / "train-00000.safetensors").write_bytes(before["train-00000.safetensors"][:-1] + b"\xff")
    (out / "train-00001.safetensors").unlink()
    for process in ("4194305", "node-7.cluster.4194305"):
        (out / f".train-00001.safetensors.{process}.tmp").write_bytes(b"half a shard")
    mended = prepare(request, out)
    assert mended.num_files_made == 2
    assert mended.index == made.index
    assert shard_bytes(out) == before


def test_damaged_images_and_missing_captions_are_counted_listed_and_left_out(
    encoder_folders: Folders, tmp_path: Path
) -> None:
    source = write_sidecars(tmp_path / "source", 12)
    whole = (source / "003.jpg").read_bytes()
    (source / "003.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "004.png").write_bytes(b"no image at all")
    (source / "006.txt").unlink()
    index = prepare(small_request(source, encoder_folders, validation_images=1), tmp_path / "set").index
    listed = [json.loads(line) for line in (tmp_path / "set" / LEFT_OUT_FILE).read_text().splitlines()]
    assert [(one["row"], one["name"]) for one in listed] == [(3, "003.jpg"), (4, "004.png"), (6, "006.png")]
    assert "truncated" in listed[0]["reason"].lower()
    assert [one["reason"] for one in listed[1:]] == ["not a file of an image", "no caption"]
    assert index.num_damaged == 3
    assert sum(shard.num_images for shard in index.shards) == 9


def test_an_image_that_the_metadata_do_not_name_is_listed(encoder_folders: Folders, tmp_path: Path) -> None:
    source = write_metadata(tmp_path / "source", 12)
    lines = (source / "metadata.jsonl").read_text().splitlines()
    gone = '{"file_name": "gone.png", "caption": "a circle"}'
    (source / "metadata.jsonl").write_text("\n".join([lines[0], *lines[2:], gone]))
    index = prepare(small_request(source, encoder_folders, validation_images=4), tmp_path / "set").index
    listed = [json.loads(line) for line in (tmp_path / "set" / LEFT_OUT_FILE).read_text().splitlines()]
    assert [(one["name"], one["reason"]) for one in listed] == [
        ("gone.png", "no such file or directory"),
        ("001.jpg", "no caption"),
    ]
    assert (index.num_damaged, sum(shard.num_images for shard in index.shards)) == (2, 11)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_damaged_image_inside_a_file_is_listed(kind: str, encoder_folders: Folders, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path / "source", 12)
    if kind == "parquet":
        rows = parquet.read_table(source).to_pylist()
        rows[3]["image"]["bytes"] = b"no image"
        parquet.write_table(pa.Table.from_pylist(rows), source)
    else:
        content = source.read_bytes()
        start = content.index(b"\xff\xd8\xff")
        source.write_bytes(content[:start] + b"no image" + content[start + 8 :])
    index = prepare(small_request(source, encoder_folders, validation_images=2), tmp_path / "set").index
    assert (index.num_damaged, sum(shard.num_images for shard in index.shards)) == (1, 11)
    assert json.loads((tmp_path / "set" / LEFT_OUT_FILE).read_text())["reason"] == "not a file of an image"


def test_images_are_cut_in_the_middle_turned_upright_and_laid_on_white() -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = 255
    assert torch.equal(decode(_file(Image.fromarray(pixels)), Sizing(8)), torch.ones(3, 8, 8))
    turned = Image.fromarray(np.vstack([np.zeros((4, 8, 3), np.uint8), np.full((4, 8, 3), 255, np.uint8)]))
    exif = turned.getexif()
    exif[0x0112] = 3  # upside down
    upright = decode(_file(turned, exif=exif), Sizing(8))
    assert (upright[:, :4] == 1).all()
    assert (upright[:, 4:] == -1).all()
    assert (decode(_file(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), Sizing(8)) == 1).all()


def _file(image: Image.Image, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_bad_requests_are_one_line_before_anything_is_encoded(encoder_folders: Folders, tmp_path: Path) -> None:
    source = write_sidecars(tmp_path / "source", 4)
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (8, 8)).save(bare / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    table = write_parquet(tmp_path / "parquet", 3)
    cut_parquet, cut_tar = tmp_path / "cut.parquet", write_webdataset(tmp_path / "tar", 9)
    cut_parquet.write_bytes(table.read_bytes()[:-99])
    cut_tar.write_bytes(cut_tar.read_bytes()[:7000])
    cases = [
        (small_request(cut_parquet, encoder_folders), "cut.parquet cannot be read: Parquet magic bytes not found"),
        (small_request(cut_tar, encoder_folders), "part.tar is cut short: it does not end as a tar does. Copy it"),
        (
            small_request(source, encoder_folders, image_size=31),
            "--image-size 31 is not divisible by 2, by which the VAE divides it. Use --image-size 32.",
        ),
        (small_request(bare, encoder_folders), "has no captions. Put each into a text file beside its image"),
        (small_request(tmp_path / "empty", encoder_folders), "holds no images."),
        (small_request(tmp_path / "notes.txt", encoder_folders), "holds files of the kinds .txt."),
        (small_request(tmp_path / "none", encoder_folders), "none does not exist."),
        (small_request(Path("somebody/pictures"), encoder_folders), "the Hugging Face Hub does not give it: "),
        (
            small_request(source, encoder_folders | {"vae": "somebody/vae"}),
            "--vae somebody/vae is no folder, and the Hug",
        ),
        (
            small_request(source, encoder_folders | {"t5": str(tmp_path)}),
            "holds no T5EncoderModel: config.json is missing.",
        ),
        (small_request(source, encoder_folders | {"clip": "/none"}), "--clip /none is not a folder."),
        (
            small_request(source, encoder_folders, validation_images=4),
            "--validation-images 4 does not fit a source of 4",
        ),
        (small_request(table, encoder_folders, caption_column="titel"), "--caption-column 'titel' is not a column"),
        (small_request(table, encoder_folders, image_column="imag"), "Did you mean 'image'?"),
    ]
    for request, message in cases:
        with pytest.raises(ConfigError) as caught:
            prepare(request, tmp_path / "set")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_weights_of_another_kind_are_one_line(encoder_folders: Folders, tmp_path: Path) -> None:
    source = write_sidecars(tmp_path / "source", 4)
    swapped = encoder_folders | {"t5": encoder_folders["clip"]}
    with pytest.raises(ConfigError, match=r"--t5 \S+ (lack|cannot be read as T5EncoderModel)"):
        prepare(small_request(source, swapped), tmp_path / "set")


def test_a_folder_belongs_to_what_was_asked_first(encoder_folders: Folders, tmp_path: Path) -> None:
    source, out = write_sidecars(tmp_path / "source", 6), tmp_path / "set"
    prepare(small_request(source, encoder_folders), out)
    with pytest.raises(ConfigError, match="was begun with another image_size: 32 there, 16 here"):
        prepare(small_request(source, encoder_folders, image_size=16), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train-00000.json").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        prepare(small_request(source, encoder_folders), tmp_path / "other")


def test_a_source_without_one_good_image_says_why(encoder_folders: Folders, tmp_path: Path) -> None:
    source = write_sidecars(tmp_path / "source", 4)
    for path in source.glob("*.*g"):
        path.write_bytes(b"broken")
    with pytest.raises(
        ConfigError, match=re.escape("no image of the train split could be used; the first: 000.png, not a")
    ):
        prepare(small_request(source, encoder_folders), tmp_path / "set")


def test_captions_that_are_too_long_are_counted(latent_set: Path, encoder_folders: Folders) -> None:
    from transformers import AutoTokenizer

    index = read_index(latent_set)
    captions = captions_of(latent_set, "train") + captions_of(latent_set, "validation")
    for encoder, limit in (("t5", 12), ("clip", 16)):
        tokenizer = AutoTokenizer.from_pretrained(encoder_folders[encoder])
        too_long = [len(ids) > limit for ids in tokenizer(captions)["input_ids"]]
        assert 0 < sum(too_long) < 40
        assert index.num_cut(encoder) == sum(too_long)
    lengths = tensors_of(latent_set, "train", "text_start_N1").diff()
    assert lengths.max() == 12


def test_weights_and_shapes_of_real_checkpoints_are_read(encoder_folders: Folders, tmp_path: Path) -> None:
    """Bfloat16, a VAE of 16 channels, CLIP with its half for images, T5 with its decoder, its tokenizer beside it."""
    encoders = save_as_published(encoder_folders, tmp_path / "published")
    source = write_sidecars(tmp_path / "source", 6)
    index = prepare(small_request(source, encoders, validation_images=1), tmp_path / "set").index
    assert (index.channels, index.latent_size) == (16, LATENT_SIZE)
    assert (index.scaling_factor, index.shift_factor) == (1.5305, 0.0609)
    plain = prepare(small_request(source, encoder_folders, validation_images=1), tmp_path / "plain").index
    assert plain.num_cut("t5") == index.num_cut("t5")
    text, other = (tensors_of(folder, "train", "text_MV").float() for folder in (tmp_path / "set", tmp_path / "plain"))
    assert text.shape == other.shape


def test_a_tokenizer_of_sentencepiece_cuts_words_as_its_own_library_does(
    encoder_folders: Folders, tmp_path: Path
) -> None:
    t5 = save_sentencepiece_t5(tmp_path / "t5")
    import sentencepiece

    source = write_sidecars(tmp_path / "source", 6)
    prepare(small_request(source, encoder_folders | {"t5": str(t5)}, max_tokens=99), tmp_path / "set")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(t5 / "spiece.model"))
    lengths = tensors_of(tmp_path / "set", "validation", "text_start_N1").diff().tolist()
    assert lengths == [len(processor.encode(text)) + 1 for text in captions_of(tmp_path / "set", "validation")]


def test_a_source_of_the_same_length_with_other_images_is_another_source(
    encoder_folders: Folders, tmp_path: Path
) -> None:
    source, out = write_sidecars(tmp_path / "source", 6), tmp_path / "set"
    prepare(small_request(source, encoder_folders), out)
    moved = source.rename(tmp_path / "moved")
    assert prepare(small_request(moved, encoder_folders), out).num_files_made == 0
    (moved / "003.txt").write_text("another caption")
    with pytest.raises(ConfigError, match="was begun with another source: its content is not the same"):
        prepare(small_request(moved, encoder_folders), out)


def test_an_image_whose_exif_data_cannot_be_read_is_used_as_it_stands() -> None:
    image, file = captioned_images(1)[0][0], BytesIO()
    image.save(file, "JPEG", exif=b"Exif\0\0no header of a TIFF file")
    assert torch.equal(decode(file.getvalue(), Sizing(8)), decode(as_bytes(image, "jpg"), Sizing(8)))


def test_sixteen_bits_keep_their_greys_and_unknown_ranges_are_left_out() -> None:
    grey = np.full((8, 8), 100, dtype=np.uint16)
    assert torch.equal(
        decode(_file(Image.fromarray(grey * 257)), Sizing(8)),
        decode(_file(Image.fromarray(grey.astype(np.uint8))), Sizing(8)),
    )
    with pytest.raises(ValueError, match="its pixels are of the kind F"):
        decode(_tiff(Image.fromarray(grey.astype(np.float32))), Sizing(8))


def test_the_transparent_grey_of_sixteen_bits_is_laid_on_the_background_and_the_others_are_kept() -> None:
    grey = np.full((8, 8), 100 * 257, dtype=np.uint16)
    grey[:, :4] = 7
    decoded = decode(_file(Image.fromarray(grey), transparency=7), Sizing(8, "black"))
    assert (decoded[:, :, :4] == -1).all()
    plain = decode(_file(Image.fromarray(np.full((8, 8), 100, dtype=np.uint8))), Sizing(8))
    assert torch.equal(decoded[:, :, 4:], plain[:, :, 4:])


def _tiff(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "TIFF")
    return file.getvalue()
