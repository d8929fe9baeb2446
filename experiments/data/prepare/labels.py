"""Numbers the classes of a source, and turns the labels of its images into these numbers.

The classes are the folders or the values of a column, sorted by name. Where a data set of the Hub orders its classes,
its order is kept; where all labels are whole numbers, they are the numbers of the classes. A row without a label, or
whose label is not the number of a class, is left out and listed.

Legend: B images of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from experiments.config.prepared_set import MAX_CLASSES
from experiments.data.prepare.encoding import LISTED_CHARACTERS, EncodedTexts
from experiments.data.prepare.source import SourceRows
from experiments.data.prepare.source_rows import ReadableRows, Row, UnusableRowError
from experiments.errors import ConfigError
from experiments.text import printable, shortened

WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,18})(\.0*)?", re.ASCII)
"""A whole number, also as pandas writes it into CSV files where one of its column is missing."""
SHOWN_CHARACTERS = 80
NAME_COLUMN = "Name the column of classes with --label-column."


@dataclass(frozen=True)
class LabelledRows:
    """Holds rows whose text is a label; `names` maps the labels that count to the names of their classes."""

    rows: ReadableRows
    names: Mapping[str, str]

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.rows)

    def read(self, number: int) -> Row:
        """Returns row `number` with the name of its class. Raises `UnusableRowError` where it has none."""
        row = self.rows.read(number)
        if row.caption is None:
            raise UnusableRowError(row.name, row.elsewhere or "no label")
        if row.caption not in self.names:
            label = shortened(printable(row.caption), SHOWN_CHARACTERS)
            raise UnusableRowError(row.name, f"its label {label} is out of range: classes are 0 to {MAX_CLASSES - 1}")
        return replace(row, caption=self.names[row.caption])

    def text(self, number: int) -> str | None:
        """Returns the label of row `number`. Raises `UnusableRowError` where it cannot be used."""
        return self.rows.text(number)


def with_classes(source: SourceRows) -> SourceRows:
    """Returns a source of labels with its classes. Raises `ConfigError` where it has none, too many, or two alike."""
    problem = ""
    given = [name.strip() for name in source.class_names or ()]
    if source.class_names is None:
        labels, problem = _labels(source)
        names = _names_of_labels(labels)
    else:
        names = {name: name for name in given if name}  # a blank one is no label
    where = f"SOURCE {source.path} has in {shortened(printable(source.caption_column), SHOWN_CHARACTERS)}"
    if not names:
        raise ConfigError(f"{where} no label of a class{problem}.", NAME_COLUMN)
    if len(names) > MAX_CLASSES:
        raise ConfigError(f"{where} {len(names):,} labels, and at most {MAX_CLASSES:,} are classes.", NAME_COLUMN)
    if len(names) < len(list(filter(None, given))):
        raise ConfigError(f"{where} two classes of one name.", "Give them different names.")
    ordered = _in_order(names.values()) if source.class_names is None else tuple(names.values())
    return replace(source, rows=LabelledRows(source.rows, names), class_names=ordered)


class LabelEncoder:
    """Turns the names of classes into their numbers, in the place where captions are encoded."""

    counted: Sequence[str] = ()

    def __init__(self, class_names: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(class_names)}

    def problem(self, caption: str) -> None:
        """Returns None: rows whose label is not the name of a class are not read."""

    def encode(self, captions: Sequence[str]) -> EncodedTexts:
        """Returns the class of each image, int64 [B]."""
        return EncodedTexts({"label_N": torch.tensor([self._numbers[name] for name in captions])})


def _labels(source: SourceRows) -> tuple[set[str], str]:
    """Returns all labels that occur, and the first row that cannot be used with the reason, for messages.

    Such rows are listed when their shard is made.
    """
    found: set[str] = set()
    problem = ""
    for number in range(len(source)):
        try:
            label = source.rows.text(number)
        except UnusableRowError as error:
            problem = problem or f" ({shortened(printable(str(error)), LISTED_CHARACTERS)})"
            continue
        if label is not None:
            found.add(label)
    return found, problem


def _names_of_labels(labels: set[str]) -> dict[str, str]:
    """Maps labels to the names of classes. Where all are whole numbers, those of no class are left out."""
    numbers = {label: int(number[1]) for label in labels if (number := WHOLE_NUMBER.fullmatch(label))}
    if len(numbers) == len(labels):
        return {label: str(number) for label, number in numbers.items() if 0 <= number < MAX_CLASSES}
    return {label: label for label in labels}


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    """Returns the classes in the order of their numbers: all up to the largest number, or else sorted by name."""
    if all(map(WHOLE_NUMBER.fullmatch, names)):
        return tuple(map(str, range(max(map(int, names)) + 1)))
    return tuple(sorted(set(names)))
