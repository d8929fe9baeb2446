"""Says why the images of a source have no captions or labels: what lies beside them, and the way out.

JSON whose captions have another key is the usual reason, so that an error names the keys that were found.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from experiments.data.prepare.folders import json_beside
from experiments.data.prepare.listing import Asked, Listing
from experiments.data.prepare.source_rows import json_keys
from experiments.data.prepare.text_columns import LABELS, TextColumn
from experiments.errors import ConfigError
from experiments.text import shortened

LOOKED_AT = 16
"""The number of JSON files whose keys are shown."""
SHOWN_CHARACTERS = 200


def without_text(asked: Asked, listing: Listing) -> ConfigError:
    """Returns the error for a folder of images to which neither files beside them nor tables give a text."""
    folder, endings, text = listing.folder, asked.endings, asked.text
    beside: Iterable[bytes] = json_beside(folder, listing.names, endings) if "json" in endings.captions else ()
    if contents := list(islice(beside, LOOKED_AT)):
        return no_known_key(str(folder), contents, text)
    if text is LABELS:
        return ConfigError(
            f"SOURCE {folder} has no labels.",
            "Put the images of each class into a folder of its name, or name a table's column with --label-column.",
        )
    return ConfigError(
        f"SOURCE {folder} has no captions.",
        "Put each into a text file beside its image (cat.jpg, cat.txt), or all into metadata.jsonl with the keys "
        "file_name and caption.",
    )


def no_known_key(source: str, contents: Iterable[bytes], text: TextColumn) -> ConfigError:
    """Returns the error for JSON files beside images in which no key is known to hold the text."""
    keys = shortened(", ".join(sorted(json_keys(islice(contents, LOOKED_AT)))), SHOWN_CHARACTERS)
    return ConfigError(
        f"SOURCE {source} has no {text.what}: the keys in the JSON files beside images are {keys or 'none'}.",
        f"Name the right one with {text.option} json.KEY.",
    )
