"""Loads the frozen networks that turn pixels into latents and captions into features: a VAE, T5 and CLIP.

The networks are classes of diffusers and transformers, loaded by `from_pretrained` from folders or from the Hub, alone
or as parts of a pipeline (`OWNER/MODEL/text_encoder`, with its `tokenizer` beside it). Weights come from safetensors
only, so that no file can execute code. The VAE works in float32 (that of SDXL overflows in float16), the text encoders
in bfloat16 on an accelerator. Results are stored in float16.

Legend: B images, C channels, H, W height and width, V, U widths of T5 and CLIP.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.config.prepared_set import Encoder
from experiments.data.prepare.encoder_configs import read_encoder_config, read_vae_config
from experiments.data.prepare.encoding import EncodedTexts, caption_tensors
from experiments.errors import ConfigError
from experiments.inputs import sha256_of_files
from experiments.libraries import library
from experiments.text import first_line, printable

CLASSES = {"vae": "AutoencoderKL", "t5": "T5EncoderModel", "clip": "CLIPTextModel"}
"""The class that loads each model."""
FILES = ("*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt")
"""The files that these classes and the tokenizers read."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json")


@dataclass(frozen=True)
class EncoderFolders:
    """Holds the folders of the encoders on this machine by name, and their descriptions with hashes of their files."""

    entries: dict[str, Encoder]
    folders: dict[str, Path]


def find_encoders(paths: Mapping[str, str]) -> EncoderFolders:
    """Finds encoders given as folders or as Hub names, which it downloads. Raises `ConfigError` for anything else."""
    found = {name: find_encoder(name, path) for name, path in paths.items()}
    entries = {name: entry for name, (entry, _) in found.items()}
    return EncoderFolders(entries, {name: folder for name, (_, folder) in found.items()})


def find_encoder(name: str, path: str) -> tuple[Encoder, Path]:
    """Returns the description and the folder of one of `CLASSES`. Raises `ConfigError` where there is none."""
    folder = _folder(name, path)
    if name == "vae":
        read_vae_config(path, folder)
    else:
        read_encoder_config(name, path, folder)
    beside = [] if name == "vae" or tokenizer_folder(folder) == folder else _files(tokenizer_folder(folder))
    try:
        sha256 = sha256_of_files(*_files(folder), *beside)
    except OSError as error:
        reason = f"{error.filename}: {(error.strerror or str(error)).lower()}"
        raise ConfigError(f"--{name} {path} cannot be read: {reason}.", _hint(name)) from error
    return Encoder(path=printable(path), kind=CLASSES[name], sha256=sha256), folder


def encoder_folders(paths: Mapping[str, str]) -> dict[str, Path]:
    """Returns the folders of the encoders by name, without reading their files as `find_encoders` does."""
    return {name: _folder(name, path) for name, path in paths.items()}


def tokenizer_folder(folder: Path) -> Path:
    """Returns the tokenizer's folder: that of the weights, or `tokenizer_2` for `text_encoder_2` as in diffusers."""
    beside = folder.parent / _tokenizer_of(folder.name)
    has_own = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return folder if has_own or not beside.is_dir() else beside


class Autoencoder:
    """Runs a VAE between pixels in [-1, 1] and its raw latents (neither shifted nor scaled)."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        kind = library("diffusers").AutoencoderKL
        self._vae = _load("vae", folder, kind, low_cpu_mem_usage=False).to(device).eval().requires_grad_(False)
        self._device = device

    @property
    def scaling_factor(self) -> float:
        """Returns the factor by which latents are multiplied after the shift."""
        return float(self._vae.config.scaling_factor)

    @property
    def shift_factor(self) -> float:
        """Returns the shift that is subtracted from latents; 0 where the VAE has none."""
        return float(self._vae.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the posterior, float16 [B, C, H, W]."""
        posterior = self._vae.encode(pixels_BCHW.to(self._device)).latent_dist
        return _stored(posterior.mean, "latents"), _stored(posterior.std, "latents")

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Returns the pixels of shifted and scaled latents, as a diffusion model generates them."""
        raw_BCHW = latent_BCHW.to(self._device) / self.scaling_factor + self.shift_factor
        pixels_BCHW: Tensor = self._vae.decode(raw_BCHW).sample
        return pixels_BCHW.float().clamp(-1, 1).cpu()


class TextEncoders:
    """Encodes captions by T5, by CLIP or by both: each caption has features of its tokens, and pooled features.

    With both, T5 gives the features of tokens and CLIP the pooled ones, as in SD3. T5 alone gives the mean over its
    tokens as pooled features, since it has no output of its own for a whole caption. CLIP alone gives the last hidden
    states as features of tokens, as Stable Diffusion 1 uses them, and its pooled output.
    """

    def __init__(self, folders: Mapping[str, Path], max_tokens: int, device: torch.device) -> None:
        """Loads the networks in `folders`, which names `t5`, `clip` or both. Raises `ConfigError` where it cannot."""
        transformers = library("transformers")
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()  # it reports the half of a model that is not asked for
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.counted: Sequence[str] = tuple(folders)
        self._device, self._max_tokens = device, max_tokens
        self._tokenizers = {name: _load_tokenizer(name, folder) for name, folder in folders.items()}
        self._models = {
            name: _load_whole(name, folder, getattr(transformers, CLASSES[name]), dtype)
            .to(device)
            .eval()
            .requires_grad_(False)
            for name, folder in folders.items()
        }

    def problem(self, caption: str) -> None:
        """Returns None: a caption of any text has features."""

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> EncodedTexts:
        """Returns the captions with features of their tokens, without padding, and pooled features.

        A caption that is too long is cut and keeps its end token. Lengths stand in place of starts, so that batches can
        be concatenated.
        """
        tokens, num_cut = {}, {}
        for name in self.counted:
            tokens[name], num_cut[name] = self._tokens(name, captions)
        outputs = {name: model(**tokens[name]) for name, model in self._models.items()}
        of_tokens = "t5" if "t5" in outputs else "clip"
        hidden_BLV, mask_BL = outputs[of_tokens].last_hidden_state, tokens[of_tokens]["attention_mask"]
        features = _stored(hidden_BLV, f"{of_tokens.upper()} features")
        pooled = outputs["clip"].pooler_output if "clip" in outputs else _mean_over_tokens(hidden_BLV, mask_BL)
        lengths = mask_BL.sum(dim=1).tolist()
        each = [row[:length] for row, length in zip(features, lengths, strict=True)]
        tensors = {
            "text_MV": torch.cat(each),
            "text_length_N": torch.tensor(lengths),
            "pooled_NU": _stored(pooled, f"pooled {'CLIP' if 'clip' in outputs else 'T5'} features"),
            **caption_tensors(captions),
        }
        return EncodedTexts(tensors, num_cut)

    def _tokens(self, name: str, captions: Sequence[str]) -> tuple[dict[str, Tensor], int]:
        """Returns the tokens of an encoder, padded on the right, and how many captions were cut."""
        tokenizer, max_length = self._tokenizers[name], self._max_tokens
        if name == "clip":
            places = int(self._models[name].config.max_position_embeddings)
            # Beside T5, CLIP reads as much of a caption as it can, because only its pooled output is kept.
            max_length = places if "t5" in self._models else min(max_length, places)
        num_cut = sum(len(ids) > max_length for ids in tokenizer(list(captions))["input_ids"])
        tokens = tokenizer(
            list(captions), padding="longest", truncation=True, max_length=max_length, return_tensors="pt",
            padding_side="right", return_token_type_ids=False,
        )  # fmt: skip
        return {name: values.to(self._device) for name, values in tokens.items()}, num_cut


def _mean_over_tokens(hidden_BLV: Tensor, mask_BL: Tensor) -> Tensor:
    """Returns the mean over the tokens of each caption, its end token included, in float32 [B, V]."""
    mask_BL1 = mask_BL.unsqueeze(-1).float()
    return (hidden_BLV.float() * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)


def _stored(values: Tensor, what: str) -> Tensor:
    half = values.to(device="cpu", dtype=torch.float16).contiguous()
    if not half.isfinite().all():
        raise ConfigError(f"the {what} do not fit float16: they reach {values.abs().max():.3g}.", "Use another model.")
    return half


def _folder(name: str, path: str) -> Path:
    """Returns an encoder's folder on this machine, and downloads it where it is only on the Hub."""
    folder = Path(path)
    if not os.path.isdir(folder):
        if os.path.lexists(folder) or path.count("/") > 2 or path.startswith((".", "/")):
            raise ConfigError(f"--{name} {path} is not a folder.", _hint(name))
        folder = _downloaded(name, path)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--{name} {path} holds no {CLASSES[name]}: config.json is missing.", _hint(name))
    return folder


def _downloaded(name: str, path: str) -> Path:
    """Downloads `OWNER/MODEL`, or a folder in it such as `OWNER/MODEL/text_encoder` with its tokenizer's folder."""
    owner_and_model, inside = "/".join(path.split("/")[:2]), "".join(path.split("/")[2:])
    folders = [f"{folder}/" for folder in (inside, _tokenizer_of(inside))] if inside else [""]
    patterns = [folder + pattern for folder in folders for pattern in FILES]
    others = None if inside else ["*/*"]
    try:
        hub = library("huggingface_hub")
        if not sys.stderr.isatty():
            hub.utils.disable_progress_bars()
        return Path(hub.snapshot_download(owner_and_model, allow_patterns=patterns, ignore_patterns=others)) / inside
    except Exception as error:  # the Hub's client raises its own classes and those of the network below it
        raise ConfigError(
            f"--{name} {path} is no folder, and the Hugging Face Hub does not give it: {first_line(error)}.",
            "Check the name and the network, or download it first and name the folder.",
        ) from error


def _tokenizer_of(folder_name: str) -> str:
    return folder_name.replace("text_encoder", "tokenizer")


def _hint(name: str) -> str:
    return f"Name a folder that {CLASSES[name]}.save_pretrained wrote (safetensors), or a model on the Hub."


def _load(name: str, folder: Path, kind: Any, **options: Any) -> Any:
    if name == "vae" or options.get("output_loading_info"):
        options["use_safetensors"] = True
    return _read(name, folder, lambda: kind.from_pretrained(folder, local_files_only=True, **options))


def _load_tokenizer(name: str, folder: Path) -> Any:
    folder = tokenizer_folder(folder)
    if (folder / "spiece.model").is_file() and not (folder / "tokenizer.json").is_file():
        library("sentencepiece")  # without it transformers asks for another library, which does not help
    return _load(name, folder, library("transformers").AutoTokenizer)


def _load_whole(name: str, folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    """Loads a model and checks that no weight is missing, which transformers would initialize at random."""
    model, report = _load(name, folder, kind, dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise ConfigError(f"the weights in --{name} {folder} lack {min(report['missing_keys'])}.", _hint(name))
    return model


def _read(name: str, folder: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # what these libraries raise for damaged files is not documented
        raise ConfigError(
            f"--{name} {folder} cannot be read as {CLASSES[name]}: {first_line(error)}.", _hint(name)
        ) from error


def _files(folder: Path) -> list[Path]:
    """Returns the regular files of a folder; others are left out, as opening a FIFO would block for ever."""
    return sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
