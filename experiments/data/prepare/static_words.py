"""Encodes captions by the static word embeddings of WordLlama, 256 numbers for each of 32,000 pieces of words.

The table and its tokenizer lie in the wheel of the package `wordllama` (MIT), which is not imported: safetensors and
tokenizers read both files. A caption is the rows of its tokens and an end token, so that the empty caption has a token
too, as with T5; pooled features are the mean over the words alone. No network runs, so that new captions are encoded
wherever the package is installed. A table of another version is another space, and is refused.

Legend: N captions, L their padded length, M tokens of all captions, V width of the table.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from experiments.config.prepared_set import Encoder
from experiments.data.prepare.encoding import EncodedTexts, caption_tensors
from experiments.errors import ConfigError
from experiments.inputs import sha256_of_files
from experiments.libraries import install, library
from experiments.text import printable

PACKAGE, EXTRA = "wordllama", "static"
TABLE, TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"
TABLE_KEY = "embedding.weight"
END_TOKEN = 2
"""The id of `</s>`, which ends every caption."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that stands for a byte of a character that has no token of its own."""


class StaticWords:
    """Encodes captions by looking up their tokens; opened once for many captions."""

    counted: Sequence[str] = ("static",)

    def __init__(self, max_tokens: int) -> None:
        """Opens the table. Raises `ConfigError` where its package is missing or damaged."""
        table, tokenizer = _files()
        self._max_tokens = max_tokens
        self._table_KV, self._tokenizer = _opened(table, tokenizer)

    @classmethod
    def opened(cls, max_tokens: int, entry: Encoder) -> Self:
        """Opens the table with which a data set was made. Raises `ConfigError` where another one is installed."""
        here = find_static_words()
        if here.sha256 != entry.sha256:
            raise ConfigError(
                f"the data set was made with {printable(entry.path)}, and {here.path} is installed, whose features are "
                "others.",
                "Install that version, or prepare the data set again.",
            )
        return cls(max_tokens)

    def problem(self, caption: str) -> str | None:
        """Returns why a caption cannot be used, or None: it has no letter or digit that the table knows."""
        tokens = self._tokenizer.encode(caption, add_special_tokens=False).tokens
        known = any(any(map(str.isalnum, token)) for token in tokens if not BYTE_TOKEN.fullmatch(token))
        return None if known else "its caption has no word that the static embedding knows"

    def encode(self, captions: Sequence[str]) -> EncodedTexts:
        """Returns the captions with the rows of their tokens, and the mean over their words.

        A caption that is too long is cut and keeps its end token. The mean of the empty caption is zero.
        """
        tokens = [self._tokenizer.encode(caption, add_special_tokens=False).ids for caption in captions]
        cut = [ids[: self._max_tokens - 1] for ids in tokens]
        rows = [self._table_KV[torch.tensor([*ids, END_TOKEN])] for ids in cut]
        pooled = [row[:-1].float().sum(dim=0) / max(1, len(row) - 1) for row in rows]
        tensors = {
            "text_MV": torch.cat(rows),
            "text_length_N": torch.tensor([len(row) for row in rows]),
            "pooled_NU": torch.stack(pooled).half(),
            **caption_tensors(captions),
        }
        return EncodedTexts(tensors, {"static": sum(len(ids) >= self._max_tokens for ids in tokens)})


def find_static_words() -> Encoder:
    """Returns the description of the installed table. Raises `ConfigError` where a package is missing or damaged."""
    library("tokenizers", EXTRA)
    version = _version()
    return Encoder(path=f"{PACKAGE} {version}", kind="StaticWords", sha256=sha256_of_files(*_files()))


def padded_features(tensors: Mapping[str, Tensor], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns encoded captions as a batch has them: [N, L, V] padded with zeros, lengths [N], and pooled [N, U]."""
    length_N, text_MV = tensors["text_length_N"], tensors["text_MV"]
    text_NLV = torch.zeros(len(length_N), length, text_MV.shape[1], dtype=text_MV.dtype)
    for place, part in enumerate(torch.split(text_MV, length_N.tolist())):
        text_NLV[place, : len(part)] = part
    return text_NLV, length_N, tensors["pooled_NU"]


@cache
def _opened(table: Path, tokenizer: Path) -> tuple[Tensor, Any]:
    """Reads the table and the tokenizer, which hold for all captions of a process."""
    tokenizers = library("tokenizers", EXTRA)
    try:
        with safe_open(table, framework="pt") as file:
            return file.get_tensor(TABLE_KEY).half(), tokenizers.Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises `Exception` itself
        raise _damaged() from error


def _files() -> tuple[Path, Path]:
    """Returns the paths of the table and of its tokenizer. Raises `ConfigError` where there are none."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"--text static needs the package {PACKAGE}, which is not installed.", install(EXTRA))
    folder = Path(found.submodule_search_locations[0])
    table, tokenizer = folder / TABLE, folder / TOKENIZER
    if not (table.is_file() and tokenizer.is_file()):
        raise _damaged()
    return table, tokenizer


def _version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _damaged() -> ConfigError:
    return ConfigError(f"the package {PACKAGE} lacks its table of words, or it is damaged.", install(EXTRA))
