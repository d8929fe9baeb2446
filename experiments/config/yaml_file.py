"""Reads YAML that a user wrote (a config, a sweep file, a cluster file, a group of settings in one word) safely.

The YAML library lets the last of two equal keys win, expands aliases without limit and recurses as deep as the text is
nested. This module refuses a key that is given twice and names both lines, counts aliases before they are expanded, and
limits the depth, size and kind of the file. `<<` merges as YAML defines it: a mapping's own keys win over merged ones.
Keys are always text. The line of every key is kept, so that a caller who knows the meaning of keys can refuse two names
of one setting (`refuse_repeated`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.cyaml import CParser  # type: ignore[attr-defined]
from yaml.resolver import Resolver

from experiments.errors import EcditError
from experiments.inputs import read_input
from experiments.text import printable, shortened

MAX_YAML_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 200_000
"""The limit of keys and values of a file with its aliases expanded, twice the runs of the largest grid."""
LONGEST_REASON = 300

TRUTH_VALUES = frozenset({"true", "false"})
"""The truth values of YAML 1.2. A bare `off`, `on`, `no` or `yes`, which YAML 1.1 counts among them, stays text: it may
be a word that a setting knows, and settings that are truth values know these words too."""

KeyPath = tuple[str, ...]
Node = yaml.Node


@dataclass(frozen=True)
class YamlContent:
    """Holds the content of a file, and the line (from 1) of every key and list item by its path."""

    value: Any
    lines: Mapping[KeyPath, int]
    other_bases: Mapping[KeyPath, str]
    """The numbers that YAML 1.1 reads to another base than 10, each as "010 is a number to the base 8"."""


@dataclass(frozen=True)
class Spelling:
    """Records how a name is written in a file, and in which line."""

    text: str
    line: int


class _RefusedYamlError(yaml.YAMLError):
    """Raised for well-formed YAML that is refused."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def read_yaml(file: Path, error_type: type[EcditError], as_text: bool) -> YamlContent:
    """Returns the content of `file`; `as_text` keeps numbers and booleans as the text that is written.

    Raises an `error_type` where there is no such file, or its YAML is not valid or is refused.
    """
    try:
        written = read_input(file, MAX_YAML_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise error_type(f"{_name(file)} cannot be read: {reason}.", "Give the path of a YAML file.") from error
    return parse_yaml(written, _name(file), error_type, as_text)


def parse_yaml(written: bytes | str, source: str, error_type: type[EcditError], as_text: bool) -> YamlContent:
    """Returns the content of YAML text in memory; `source` names it in errors."""
    _refuse_other_encoding(written, source, error_type)
    try:
        loader = _Loader(written)
        node = loader.get_single_node()
        reader = _Reader(loader, as_text)
        value = None if node is None else reader.read(node, ())
    except _RefusedYamlError as error:
        raise error_type(f"{source}: {error.message}", error.hint) from error
    except (yaml.YAMLError, ValueError) as error:
        said = re.sub(r'"<\w+ string>", ', "", " ".join(str(error).split()))
        reason = shortened(printable(said), LONGEST_REASON)
        raise error_type(f"{source} is not YAML: {reason}.", "Correct it.") from error
    return YamlContent(value, reader.lines, reader.other_bases)


def refuse_repeated(
    names: Iterable[tuple[str, Spelling]],
    source: str,
    error_type: type[EcditError],
    known: Mapping[str, Spelling] | None = None,
) -> dict[str, Spelling]:
    """Maps each of `names` to its spelling.

    Raises an `error_type` that names both lines where one is given twice, or is among those `known` already.
    """
    found: dict[str, Spelling] = {}
    for name, spelling in names:
        other = found.get(name) or (known or {}).get(name)
        if other is not None:
            raise error_type(f"{source}: {_given_twice(name, other, spelling)}", "Keep one of them.")
        found[name] = spelling
    return found


def _given_twice(name: str, *both: Spelling) -> str:
    first, second = sorted(both, key=lambda spelling: spelling.line)
    if {first.text, second.text} == {name}:
        return f"{name} is given twice, {_in_lines(first.line, second.line)}."
    return f"{name} is given twice, in line {first.line} ({first.text}) and in line {second.line} ({second.text})."


def _in_lines(first: int, second: int) -> str:
    return f"in line {first}" if first == second else f"in lines {first} and {second}"


def _refuse_other_encoding(written: bytes | str, source: str, error_type: type[EcditError]) -> None:
    """Raises an `error_type` for bytes that are neither UTF-8 nor marked as UTF-16, the encodings of YAML."""
    if isinstance(written, str) or written.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return
    try:
        written.decode("utf-8")
    except UnicodeDecodeError as error:
        line = written.count(b"\n", 0, error.start) + 1
        raise error_type(f"{source} is not UTF-8 in line {line}.", "Save it as UTF-8.") from error


class _Loader(Composer, CParser, SafeConstructor, Resolver):
    """The library's own parts, with a limit on depth and on what aliases expand to, checked while nodes are composed.

    `Composer` comes before `CParser`, which would compose nodes itself, without limits and with the stack of C.
    """

    def __init__(self, written: bytes | str) -> None:
        CParser.__init__(self, written)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth = 0
        self._extents: dict[int, tuple[int, int]] = {}
        """The number of values in every complete node, and its depth, with aliases expanded."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._extents:
                raise _RefusedYamlError(
                    f"the alias in line {line} stands for what it is itself a part of.", "Write it out."
                )
            return node
        self._depth += 1
        self._refuse_too_deep(self._depth, line)
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None, "only an empty document has no node"
        self._extents[id(node)] = self._extent(node)
        return node

    def _extent(self, node: Node) -> tuple[int, int]:
        parts = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = [self._extents[id(part)] for part in parts] if isinstance(node, yaml.CollectionNode) else []
        num_values, depth = 1 + sum(num for num, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        if max(num_values, len(self._extents)) > MAX_VALUES:
            raise _RefusedYamlError(
                f"it holds more than {MAX_VALUES:,} values, its aliases expanded.", "Write a smaller file."
            )
        self._refuse_too_deep(depth, node.start_mark.line + 1)
        return num_values, depth

    def _refuse_too_deep(self, depth: int, line: int) -> None:
        if depth > MAX_DEPTH:
            raise _RefusedYamlError(
                f"line {line} is nested more than {MAX_DEPTH} levels deep.", "Write settings as section.name."
            )


@dataclass
class _Reader:
    """Converts YAML nodes to Python values."""

    loader: _Loader
    as_text: bool
    lines: dict[KeyPath, int] = field(default_factory=dict)
    other_bases: dict[KeyPath, str] = field(default_factory=dict)

    def read(self, node: Node, path: KeyPath) -> Any:
        """Returns the value of a node at `path`."""
        self.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, str(index))) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if self.as_text:
            return node.value
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise _RefusedYamlError(f"line {node.start_mark.line + 1} has a tag of its own.", "Write a plain value.")
        value = self._scalar(node)
        if isinstance(value, bool) and node.value.lower() not in TRUTH_VALUES:
            return node.value
        base = _other_base(node.value, value)
        if base is not None:
            self.other_bases[path] = f"{shortened(node.value, 60)} is a number to the base {base}"
        return value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        read = {}
        for name, (key, value) in self._pairs(node, path).items():
            read[name] = self.read(value, (*path, name))
            self.lines[(*path, name)] = key.start_mark.line + 1
        return read

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, tuple[Node, Node]]:
        """Returns keys and values by name, including those of merged mappings."""
        own: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _RefusedYamlError(f"the key in line {line} is not a text.", "Write a name before the colon.")
            if key.value in own:
                first = own[key.value][0].start_mark.line + 1
                name = ".".join((*path, key.value))
                raise _RefusedYamlError(f"{name} is given twice, {_in_lines(first, line)}.", "Keep one of them.")
            own[key.value] = (key, value)
        merged: dict[str, tuple[Node, Node]] = {}
        for each in self._merged_nodes(own.pop("<<", None)):
            merged = {**self._pairs(each, path), **merged}
        return {**merged, **own}

    def _merged_nodes(self, merge: tuple[Node, Node] | None) -> list[yaml.MappingNode]:
        if merge is None:
            return []
        key, value = merge
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(node, yaml.MappingNode) for node in nodes):
            raise _RefusedYamlError(
                f"<< in line {key.start_mark.line + 1} does not merge keys.",
                "Write an alias of a mapping, `<<: *name`.",
            )
        return list(nodes)

    def _scalar(self, node: Node) -> Any:
        try:
            return self.loader.construct_object(node)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:  # `!!int abc`, a date in month 13
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise _RefusedYamlError(
                f"line {line}: {shortened(printable(node.value), 60)} is not of the kind {kind}.", "Put it in quotes."
            ) from error


def _other_base(written: str, value: Any) -> int | None:
    """Returns the base to which YAML 1.1 reads a number, as 010 is 8 and 1:30 is 90; None where it is 10."""
    digits = written.replace("_", "").lstrip("+-")
    if not isinstance(value, int | float):
        return None
    if ":" in digits:
        return 60
    if digits[:2] in ("0x", "0b"):
        return 16 if digits[1] == "x" else 2
    return 8 if digits.startswith("0") and digits.isdigit() and int(digits) != abs(value) else None


def _name(file: Path) -> str:
    return shortened(printable(str(file)), LONGEST_REASON)
