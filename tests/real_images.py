"""Real image files from the project's own renderer, and real encoders made small, as their libraries save them."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from experiments.data.scenes.captions import describe
from experiments.data.scenes.scene import draw_scenes, render_scenes

if TYPE_CHECKING:
    from experiments.data.prepare.request import Request

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHANNELS, TEXT_WIDTH, POOLED_WIDTH, MAX_TOKENS = 4, 24, 16, 12
IMAGE_SIZE, LATENT_SIZE = 32, 16


def need_data_extra() -> None:
    """Skip what needs `ecdit[data]` where it is not installed."""
    for name in ("datasets", "diffusers", "transformers"):
        pytest.importorskip(name, reason=f"{name} is of the extra ecdit[data]")


def need_static_extra() -> None:
    """Skip what needs `ecdit[static]` where it is not installed; its table is read without importing it."""
    for name in ("wordllama", "tokenizers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is of the extra ecdit[static]", allow_module_level=True)


def captioned_images(number: int) -> list[tuple[Image.Image, str]]:
    """Wider than high, so that there is something to cut off."""
    scenes = draw_scenes(0, range(number), "train", 32)
    pixels = ((render_scenes(scenes) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
    wide = [np.pad(image, ((0, 0), (3, 5), (0, 0)), mode="edge") for image in pixels]
    return [(Image.fromarray(image), describe(scene)) for image, scene in zip(wide, scenes, strict=True)]


def as_bytes(image: Image.Image, suffix: str) -> bytes:
    file = BytesIO()
    image.save(file, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return file.getvalue()


def write_sidecars(folder: Path, number: int) -> Path:
    """PNG and JPEG in turns, each with a text file beside it."""
    folder.mkdir(parents=True)
    for place, (image, caption) in enumerate(captioned_images(number)):
        suffix = ("png", "jpg")[place % 2]
        (folder / f"{place:03d}.{suffix}").write_bytes(as_bytes(image, suffix))
        (folder / f"{place:03d}.txt").write_text(caption + "\n")
    return folder


def write_metadata(folder: Path, number: int) -> Path:
    write_sidecars(folder, number)
    captions = {path.stem: path.read_text().strip() for path in folder.glob("*.txt")}
    images = sorted(path for path in folder.iterdir() if path.suffix != ".txt")
    lines = [json.dumps({"file_name": path.name, "caption": captions[path.stem]}) for path in images]
    for path in folder.glob("*.txt"):
        path.unlink()
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_parquet(folder: Path, number: int) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True)
    rows = [
        {"image": {"bytes": as_bytes(image, "png"), "path": f"{place}.png"}, "caption": caption}
        for place, (image, caption) in enumerate(captioned_images(number))
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    return folder / "part.parquet"


def write_webdataset(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "part.tar", "w") as tar:
        for place, (image, caption) in enumerate(captioned_images(number)):
            for suffix, content in (("jpg", as_bytes(image, "jpg")), ("txt", caption.encode())):
                entry = tarfile.TarInfo(f"{place:04d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
    return folder / "part.tar"


CLASS_NAMES = ("cat", "dog", "zebra finch")


def write_class_folders(folder: Path, number: int) -> Path:
    """A tree of images whose folders are their classes, in turns; one image lies a folder deeper."""
    for place, (image, _) in enumerate(captioned_images(number)):
        inside = folder / CLASS_NAMES[place % len(CLASS_NAMES)] / ("deeper" if place == 0 else "")
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"{place:03d}.png").write_bytes(as_bytes(image, "png"))
    return folder


SOURCES: dict[str, Callable[[Path, int], Path]] = {
    "sidecars": write_sidecars,
    "metadata": write_metadata,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}


def save_vae(folder: Path, channels: int = CHANNELS) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels, sample_size=IMAGE_SIZE,
        scaling_factor=0.5, shift_factor=0.25,
    )  # fmt: skip
    vae.save_pretrained(folder)
    return folder


def save_t5(folder: Path) -> Path:
    """Spells words by letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def save_sentencepiece_t5(folder: Path) -> Path:
    """A T5 as published: its tokenizer is a file of SentencePiece, which was trained, and nothing else."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is of the extra ecdit[data]")
    from transformers import T5Config, T5EncoderModel

    folder.mkdir(parents=True)
    captions = [caption for _, caption in captioned_images(200)]
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=model, vocab_size=60, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "extra_ids": 100, "model_max_length": 512}))
    config = T5Config(vocab_size=200, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def save_clip_text(folder: Path) -> Path:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir(parents=True)
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=POOLED_WIDTH, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def save_encoders(folder: Path) -> dict[str, str]:
    """Their folders by the names of the options."""
    made = {"vae": save_vae(folder / "vae"), "t5": save_t5(folder / "t5"), "clip": save_clip_text(folder / "clip")}
    return {name: str(path) for name, path in made.items()}


def small_request(source: Path, encoders: dict[str, str], **settings: Any) -> Request:
    """What is asked for in tests, unless told otherwise."""
    from experiments.data.prepare.request import Request

    small: dict[str, Any] = {"image_size": IMAGE_SIZE, "max_tokens": MAX_TOKENS, "shard_images": 8, "batch_images": 3}
    return Request(source=str(source), **encoders, **(small | settings))


def labelled_request(source: Path, encoders: dict[str, str], **settings: Any) -> Request:
    """A small request for a source whose images have classes; it names no text encoder."""
    return small_request(source, {"vae": encoders["vae"]}, **({"text": "labels"} | settings))


def tensors_of(folder: Path, split: str, name: str) -> torch.Tensor:
    """One tensor of all shards of a split, one after the other."""
    return torch.cat([load_file(file)[name] for file in sorted(folder.glob(f"{split}-*.safetensors"))])


def save_as_published(small: dict[str, str], folder: Path) -> dict[str, str]:
    """The small encoders in the forms that are published: see `test_prepare.py`."""
    import shutil

    from diffusers import AutoencoderKL
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, T5Config, T5ForConditionalGeneration

    torch.manual_seed(3)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=16, sample_size=IMAGE_SIZE,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    ).to(torch.bfloat16).save_pretrained(folder / "vae")  # fmt: skip
    t5 = T5ForConditionalGeneration(T5Config.from_pretrained(small["t5"]))
    t5.to(torch.bfloat16).save_pretrained(folder / "text_encoder_2")
    shutil.copytree(small["t5"], folder / "tokenizer_2", ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    shutil.copytree(small["clip"], folder / "clip", ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig.from_pretrained(small["clip"]).to_dict()
    vision = {**seeing, "image_size": IMAGE_SIZE, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder / "clip")
    parts = {"vae": "vae", "t5": "text_encoder_2", "clip": "clip"}
    return {name: str(folder / part) for name, part in parts.items()}
