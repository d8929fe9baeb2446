"""What `data prepare` makes of its own files when they are damaged, of small sources, and of configs of encoders."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.config.prepared_set import fingerprint_of, read_index
from experiments.data.order import shuffled
from experiments.data.prepare.encoders import find_encoder
from experiments.data.prepare.index_writer import LEFT_OUT_FILE
from experiments.data.prepare.job import prepare
from experiments.data.prepare.request import Request
from experiments.data.prepare.shards import VALIDATION_SEED
from experiments.data.sources.mapped_shards import check_length, check_tensors
from experiments.errors import ConfigError, EcditError
from tests.real_images import small_request, write_sidecars
from tests.unit.data.prepare.test_source_rows import without_privileges

Folders = dict[str, str]
DEEP = b"[" * 100_000


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copied(latent_set: Path, tmp_path: Path) -> Path:
    return shutil.copytree(latent_set, tmp_path / "set")


@pytest.fixture
def request_of_set(latent_set: Path, encoder_folders: Folders) -> Request:
    return small_request(latent_set.parent / "source", encoder_folders, validation_images=4)


def changed(path: Path, change: Callable[[dict[str, object]], object]) -> bytes:
    content = json.loads(path.read_text())
    change(content)
    return json.dumps(content).encode()


WRONG_NOTES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "cut": lambda path: path.read_bytes()[:-40],
    "deep": lambda path: DEEP,
    "not text": lambda path: b"\xff\xfe\x00\xd8",
    "null": lambda path: b"null",
    "a list": lambda path: b"[1]",
    "without its rows": lambda path: changed(path, lambda note: note.pop("rows")),
    "of another request": lambda path: changed(path, lambda note: note.update(request="0" * 64)),
    "no entry": lambda path: changed(path, lambda note: note.update(entry=None)),
    "another file": lambda path: changed(path, lambda note: note["entry"].update(file="../../../etc/passwd")),
    "text for a number": lambda path: changed(path, lambda note: note["entry"].update(num_images="many")),
    "a negative number": lambda path: changed(path, lambda note: note["entry"].update(num_tokens=-1)),
    "not a number": lambda path: changed(path, lambda note: note["entry"].update(num_tokens=float("nan"))),
    "rows of others": lambda path: changed(
        path, lambda note: note.update(left_out=[{"row": 10**20, "name": "x", "reason": "y"}])
    ),
    "no list": lambda path: changed(path, lambda note: note.update(left_out=7)),
}


@pytest.mark.parametrize("kind", WRONG_NOTES)
def test_a_note_that_cannot_be_used_is_made_again_with_its_file(
    kind: str, copied: Path, latent_set: Path, request_of_set: Request
) -> None:
    note = copied / "train-00001.json"
    note.write_bytes(WRONG_NOTES[kind](note))
    assert prepare(request_of_set, copied).num_files_made == 1
    assert content_of(copied) == content_of(latent_set)


def test_a_fifo_in_the_place_of_a_note_or_a_file_is_replaced_and_never_opened(
    copied: Path, latent_set: Path, request_of_set: Request
) -> None:
    for name in ("train-00001.json", "train-00002.safetensors", "empty-caption.json"):
        (copied / name).unlink()
        os.mkfifo(copied / name)
    assert prepare(request_of_set, copied).num_files_made == 3
    assert content_of(copied) == content_of(latent_set)


@pytest.mark.parametrize("content", [b"", b'{"image_size": 32', b"[]", b"7", b"\xff", DEEP])
def test_a_damaged_request_is_written_again_and_what_belongs_to_it_is_kept(
    content: bytes, copied: Path, latent_set: Path, request_of_set: Request, encoder_folders: Folders
) -> None:
    (copied / "request.json").write_bytes(content)
    assert prepare(request_of_set, copied).num_files_made == 0
    assert content_of(copied) == content_of(latent_set)
    (copied / "request.json").write_bytes(content)
    other = small_request(latent_set.parent / "source", encoder_folders, validation_images=4, max_tokens=9)
    assert prepare(other, copied).num_files_made == 7  # nothing of the first request is taken for the second's


@pytest.mark.parametrize("content", [b"", b"{", b"[]", DEEP])
def test_a_damaged_index_is_written_again(
    content: bytes, copied: Path, latent_set: Path, request_of_set: Request
) -> None:
    (copied / "index.json").write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"index\.json is damaged\. Run its `ecdit data prepare` again, which writes it"
    ):
        read_index(copied)
    assert prepare(request_of_set, copied).num_files_made == 0
    assert content_of(copied) == content_of(latent_set)


def test_a_damaged_request_of_an_older_data_set_is_an_error(copied: Path, request_of_set: Request) -> None:
    for path in copied.glob("*-*.json"):
        path.write_bytes(changed(path, lambda note: note.pop("request")))
    assert prepare(request_of_set, copied).num_files_made == 0
    (copied / "request.json").write_text("{")
    with pytest.raises(ConfigError, match=r"request.json is damaged, and nothing else says .* Name another folder."):
        prepare(request_of_set, copied)


def test_values_of_a_request_that_are_null_or_of_another_type_are_shown_as_they_are(
    copied: Path, request_of_set: Request
) -> None:
    for value in (None, "x" * 9999, {"\x1b[31m": 1}):
        (copied / "request.json").write_bytes(
            changed(copied / "request.json", lambda stored, value=value: stored.update(image_size=value))
        )
        with pytest.raises(ConfigError, match="was begun with another image_size: ") as caught:
            prepare(request_of_set, copied)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("damage", ["image", "caption", "both"])
def test_a_small_source_whose_validation_image_is_bad_validates_with_the_next_good_one(
    damage: str, encoder_folders: Folders, tmp_path: Path
) -> None:
    source = write_sidecars(tmp_path / "source", 20)
    first, second, third = shuffled(VALIDATION_SEED, torch.arange(3).numpy(), 20).tolist()
    images = sorted(path for path in source.iterdir() if path.suffix != ".txt")
    if damage in ("image", "both"):
        images[first].write_bytes(b"broken")
    if damage in ("caption", "both"):
        images[second if damage == "both" else first].with_suffix(".txt").unlink()
    used = third if damage == "both" else second
    index = prepare(small_request(source, encoder_folders), tmp_path / "set").index
    assert (index.num_images("validation"), index.num_images("train")) == (1, 20 - (3 if damage == "both" else 2))
    assert load_file(tmp_path / "set" / "validation-00000.safetensors")["row_N"].tolist() == [used]
    assert prepare(small_request(source, encoder_folders), tmp_path / "set").num_files_made == 0


def test_a_source_whose_other_images_are_bad_says_the_way_out(encoder_folders: Folders, tmp_path: Path) -> None:
    source = write_sidecars(tmp_path / "source", 5)
    for number in range(1, 5):
        next(source.glob(f"00{number}.*g")).write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"no image of the train split .* Mend them or add others, and name another"):
        prepare(small_request(source, encoder_folders), tmp_path / "set")
    assert len((tmp_path / "set" / LEFT_OUT_FILE).read_text().splitlines()) == 4


def test_the_image_that_an_error_names_is_of_the_split_that_has_none(encoder_folders: Folders, tmp_path: Path) -> None:
    """The first image of all is one to validate with, as is the only good one."""
    drawn = {number: shuffled(VALIDATION_SEED, np.arange(2), number).tolist() for number in range(4, 100)}
    number, validation = next((number, rows) for number, rows in drawn.items() if 0 in rows)
    source = write_sidecars(tmp_path / "source", number)
    images = sorted(path for path in source.iterdir() if path.suffix != ".txt")
    for row in set(range(number)) - {max(validation)}:
        images[row].write_bytes(b"broken")
    first = images[2 if max(validation) == 1 else 1].name
    with pytest.raises(ConfigError, match=f"no image of the train split could be used; the first: {first}, "):
        prepare(small_request(source, encoder_folders, validation_images=2), tmp_path / "set")


WRONG_INDEXES: dict[str, object] = {
    "image_size": "32", "latent_size": True, "channels": None, "caption_length": 10**9, "text_width": 10**6,
    "pooled_width": -1, "scaling_factor": "0.5", "shards": [], "num_damaged": 1.5, "vae": [], "source": None,
    "schema_version": None, "empty_caption": {"file": "../x", "num_bytes": 1, "sha256": ""},
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG_INDEXES)
def test_an_index_of_wrong_types_is_one_line_even_with_a_right_fingerprint(key: str, copied: Path) -> None:
    path = copied / "index.json"
    content = json.loads(path.read_text()) | {key: WRONG_INDEXES[key]}
    if isinstance(content["vae"], dict):
        content["fingerprint"] = fingerprint_of(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"index\.json is ") as caught:
        read_index(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [DEEP, b"null", b"[]", b"7", b'{"schema_version": NaN}', b"\xff\xfe"])
def test_an_index_that_is_none_is_one_line(content: bytes, copied: Path) -> None:
    (copied / "index.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"index\.json is "):
        read_index(copied)


def without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


WRONG_SHARDS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "no latents": without("latent_mean_NCHW"),
    "no text": without("text_MV"),
    "no starts": without("text_start_N1"),
    "other type": lambda tensors: tensors.update(latent_std_NCHW=tensors["latent_std_NCHW"].double()),
    "other width": lambda tensors: tensors.update(pooled_NU=tensors["pooled_NU"][:, :-1].contiguous()),
    "fewer images": lambda tensors: tensors.update(latent_mean_NCHW=tensors["latent_mean_NCHW"][1:].contiguous()),
    "starts beyond": lambda tensors: tensors["text_start_N1"].__setitem__(-1, 10**12),
    "starts before": lambda tensors: tensors["text_start_N1"].__setitem__(2, -5),
}


@pytest.mark.parametrize("kind", WRONG_SHARDS)
def test_a_shard_with_other_tensors_than_the_index_says_is_damaged(kind: str, copied: Path) -> None:
    path = copied / "train-00001.safetensors"
    tensors = load_file(path)
    WRONG_SHARDS[kind](tensors)
    save_file(tensors, path)
    index = read_index(copied)
    shard = next(file for file in index.files() if file.file == path.name)
    with pytest.raises(ConfigError, match=f"the shard {path} is damaged"):
        check_tensors(copied, index, shard)
    for file in index.files():
        if file is not shard:
            check_length(copied, file)
            check_tensors(copied, index, file)


WRONG_CONFIGS: list[tuple[str, object, str]] = [
    ("vae", {"scaling_factor": "big"}, "scaling_factor is 'big'"),
    ("vae", {"scaling_factor": float("nan")}, "scaling_factor is nan"),
    ("vae", {"scaling_factor": 0}, "scaling_factor is 0"),
    ("vae", {"shift_factor": [1]}, "shift_factor is"),
    ("vae", {"block_out_channels": 7}, "block_out_channels is 7"),
    ("vae", {"block_out_channels": []}, "block_out_channels is []"),
    ("vae", {"block_out_channels": ["a"]}, "block_out_channels.0 is 'a'"),
    ("vae", {"block_out_channels": [10**6, 10**6]}, "block_out_channels.0 is 1000000"),
    ("vae", {"latent_channels": 10**9}, "latent_channels is 1000000000"),
    ("vae", b"[]", "it is not a JSON object"),
    ("vae", b"null", "it is not a JSON object"),
    ("vae", b"{", "it is not JSON"),
    ("vae", DEEP, "it is not JSON"),
    ("vae", b'{"scaling_factor": 1, "scaling_factor": 2}', "it is not JSON (the key 'scaling_factor' is there twice)"),
    ("t5", DEEP, "it is not JSON"),
    ("t5", {"num_layers": 10**7}, "num_layers is 10000000, and at most 1,024 is read"),
    ("t5", {"d_model": 1e300}, "d_model is 1e+300"),
    ("clip", {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000"),
    ("clip", {"hidden_size": float("inf")}, "hidden_size is inf"),
    ("clip", b"\xff\xfe\x00", "it is not JSON"),
]


@pytest.mark.parametrize(("encoder", "config", "message"), WRONG_CONFIGS)
def test_a_config_of_an_encoder_that_is_wrong_is_one_line_before_anything_is_built(
    encoder: str, config: dict[str, object] | bytes, message: str, encoder_folders: Folders, tmp_path: Path
) -> None:
    folder = shutil.copytree(encoder_folders[encoder], tmp_path / encoder)
    path = folder / "config.json"
    path.write_bytes(config if isinstance(config, bytes) else changed(path, lambda stored: stored.update(config)))
    source = write_sidecars(tmp_path / "source", 4)
    with pytest.raises(ConfigError, match=f"^--{encoder} {folder} has a config.json that cannot be used: ") as caught:
        prepare(small_request(source, encoder_folders | {encoder: str(folder)}), tmp_path / "set")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [
        ("t5", {"d_model": "wide"}),
        ("t5", {"d_model": 10**6}),
        ("t5", {"num_layers": None}),
        ("t5", {"vocab_size": -1}),
        ("clip", {"hidden_size": [16]}),
        ("clip", {"hidden_size": 10**6}),
        ("clip", {"max_position_embeddings": 10**6}),
        ("clip", {"num_hidden_layers": 1000}),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_one_line(
    encoder: str, settings: dict[str, object], encoder_folders: Folders, tmp_path: Path
) -> None:
    folder = shutil.copytree(encoder_folders[encoder], tmp_path / encoder)
    (folder / "config.json").write_bytes(changed(folder / "config.json", lambda stored: stored.update(settings)))
    source = write_sidecars(tmp_path / "source", 4)
    with pytest.raises(EcditError, match=f"--{encoder} {folder}") as caught:
        prepare(small_request(source, encoder_folders | {encoder: str(folder)}), tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_a_fifo_among_the_files_of_an_encoder_is_not_opened(encoder_folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folders["vae"], tmp_path / "vae")
    os.mkfifo(folder / "more.json")
    source = write_sidecars(tmp_path / "source", 4)
    index = prepare(small_request(source, encoder_folders | {"vae": str(folder)}), tmp_path / "set").index
    assert index.num_images("train") == 3


def test_an_encoder_without_permission_is_one_line(
    encoder_folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(encoder_folders["vae"], tmp_path / "vae")
    monkeypatch.chdir(folder)
    (weights,) = Path().glob("*.safetensors")
    weights.chmod(0)
    message = re.escape(f"--vae . cannot be read: {weights}: permission denied.")
    with without_privileges(), pytest.raises(ConfigError, match=message):
        find_encoder("vae", ".")


def test_a_source_whose_name_is_not_unicode_is_written_out_and_such_an_out_refused(
    encoder_folders: Folders, tmp_path: Path
) -> None:
    source = write_sidecars(tmp_path / os.fsdecode(b"pictures\xff"), 4)
    index = prepare(small_request(source, encoder_folders), tmp_path / "set").index
    assert index.source.path.endswith("pictures\\udcff")
    with pytest.raises(ConfigError, match=r"set\\udcff is not Unicode"):
        prepare(small_request(source, encoder_folders), tmp_path / os.fsdecode(b"set\xff"))
