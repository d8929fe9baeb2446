"""Holds what a user asks of `ecdit data prepare`: the request that defines a data set.

The form of images and the form of their text are chosen separately: latents of a VAE or pixels, and features of T5, of
CLIP or of both, static word embeddings, or classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import ImageColor

from experiments.errors import ConfigError
from experiments.text import printable, shortened

TextKind = Literal["captions", "t5", "clip", "static", "labels"]
NETWORKS: dict[TextKind, tuple[str, ...]] = {
    "captions": ("t5", "clip"), "t5": ("t5",), "clip": ("clip",), "static": (), "labels": (),
}  # fmt: skip
"""The networks that encode each kind of text, which the user names."""
DEFAULT_SPLIT = "train"
"""The split of a data set of the Hub where none is named."""
NEW_KEYS = {"background": "white", "flip": False}
"""Options that came later, with their defaults: a request that does not use them is the same as before."""


@dataclass(frozen=True)
class Request:
    """Holds what defines a data set: its source, encoders, sizes, split and columns."""

    source: str
    vae: str | None = None
    """The VAE that makes latents of the images; None stands for pixels."""
    t5: str | None = None
    clip: str | None = None
    image_size: int = 256
    max_tokens: int = 120
    validation_images: int | None = None
    """None stands for a twentieth of the rows, at least 1 and at most 512."""
    shard_images: int = 1024
    batch_images: int = 16
    split: str | None = None
    """None stands for `DEFAULT_SPLIT`, under which requests without a split are stored."""
    subset: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    text: TextKind = "captions"
    """The text of an image: its caption, which T5 and CLIP (`captions`), one of them or static embeddings encode, or
    the label of its class."""
    label_column: str | None = None
    background: str = "white"
    """The colour that transparency becomes."""
    flip: bool = False
    """Says whether training mirrors images at random."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` where captions lack an encoder, and where an option does not fit the others."""
        networks: dict[str, str | None] = {"t5": self.t5, "clip": self.clip}
        needed = NETWORKS[self.text]
        if missing := [name for name in needed if networks[name] is None]:
            # A user who names one of the two may want that one alone.
            alone = "".join(f"--text {name}, " for name in needed if name not in missing)
            raise ConfigError(
                f"--{missing[0]} is missing, which encodes captions.",
                f"Name it, or use {alone}--text static or --text labels.",
            )
        unfit = {f"--{name}": path for name, path in networks.items() if name not in needed}
        unfit |= {"--label-column": self.label_column}
        if self.text == "labels":
            unfit = unfit | {"--caption-column": self.caption_column, "--label-column": None}
        given = next((option for option, value in unfit.items() if value is not None), None)
        if given is not None:
            way_out = "Leave it out, or use --text labels." if given == "--label-column" else "Leave it out."
            raise ConfigError(f"{given} does not fit --text {self.text}.", way_out)
        if self.flip and self.vae is not None:
            raise ConfigError(
                "--flip does not fit --vae: the latents of a mirrored image are others.", "Use --vae none for pixels."
            )
        _check_color(self.background)

    @property
    def encoders(self) -> dict[str, str]:
        """Returns the folders or Hub names of the encoders that are used, by name."""
        given = {"vae": self.vae, "t5": self.t5, "clip": self.clip}
        return {name: path for name, path in given.items() if path is not None}

    def identity(self) -> dict[str, Any]:
        """Returns what tells a data set from that of another request, without paths, and columns that may be found."""
        unused = {"source", "vae", "t5", "clip", "caption_column", "label_column"}
        # A request for captions has the keys that it had before there were labels, so that its data sets stay its own.
        unused |= {"text"} if self.text == "captions" else set()
        unused |= {"max_tokens"} if self.text == "labels" else set()
        unused |= {key for key, default in NEW_KEYS.items() if getattr(self, key) == default}
        form = {} if self.vae is not None else {"images": "pixels"}
        given = asdict(self) | {"split": self.split or DEFAULT_SPLIT}
        return {key: value for key, value in given.items() if key not in unused} | form


def _check_color(color: str) -> None:
    """Raises `ConfigError` where PIL does not know a colour, or where it is transparent itself."""
    try:
        is_opaque = len(ImageColor.getrgb(color)) == 3
    except ValueError:
        is_opaque = False
    if not is_opaque:
        raise ConfigError(
            f"--background {shortened(printable(color), 80)} is not a colour.",
            "Use for example white, black or #808080.",
        )
