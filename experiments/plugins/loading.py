"""Finds plugins, and adds their rows to the registries.

A plugin is a Python file that is named with `--plugin FILE.py`, or an installed package with an entry point in one of
the groups of `KINDS`. Either holds rows, such as `ROUTERS = [RouterRow(...)]`. Once they are in the registry of their
kind, everything else treats them like ours. Files are handed to child processes in `ECDIT_PLUGINS`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import decode_source
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.errors import ConfigError, EcditError, PluginError
from experiments.inputs import read_input
from experiments.plugins.sources import SOURCES, PluginSource, on_one_line, said_by

VARIABLE = "ECDIT_PLUGINS"
"""The environment variable with the files of plugins, separated like the folders in PATH."""
MAX_PLUGIN_BYTES = 2**20
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
"""The names of rows, which become names of files and folders."""


@dataclass(frozen=True)
class Kind:
    """One kind of row that plugins can add."""

    word: str
    rows: str
    """The name of the registry in its module, and of the list of rows in the file of a plugin."""
    module: str
    """The module of the registry. It is imported only for rows of this kind, as some import matplotlib."""
    row: str
    """The class of a row, in the same module."""

    @property
    def group(self) -> str:
        """Returns the group of the entry points: `ecdit.routers`."""
        return f"ecdit.{self.rows.lower()}"

    def registry(self) -> dict[str, Any]:
        """Returns the registry itself, so that rows can be added."""
        registry: dict[str, Any] = getattr(importlib.import_module(self.module), self.rows)
        return registry

    def row_type(self) -> type:
        """Returns the class of a row."""
        row_type: type = getattr(importlib.import_module(self.module), self.row)
        return row_type


KINDS = (
    Kind("router", "ROUTERS", "experiments.config.routers", "RouterRow"),
    Kind("metric", "METRICS", "experiments.config.metrics", "MetricRow"),
    Kind("figure", "FIGURES", "analysis.figures.registry", "FigureEntry"),
)

_loaded: set[str] = set()
"""The files that this process has loaded, and "packages" when it has loaded these."""


def load_plugins(files: Iterable[Path] = ()) -> None:
    """Adds the rows of installed packages, of the files in `ECDIT_PLUGINS` and of `files` to the registries.

    The files are put into `ECDIT_PLUGINS` for child processes. What was loaded before stays as it is. Raises
    `PluginError` for a plugin that cannot be used.
    """
    given = [os.path.realpath(path) for path in files]
    for path in given:
        if os.pathsep in path:
            raise PluginError(f"{path}: the path of a plugin cannot contain {os.pathsep!r}.", "Rename the folder.")
    named = (os.path.realpath(path) for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path)
    paths = list(dict.fromkeys([*named, *given]))
    if paths:
        os.environ[VARIABLE] = os.pathsep.join(paths)
    if "packages" not in _loaded:
        _load_packages()
        _loaded.add("packages")
    for path in paths:
        if path not in _loaded:
            _load_file(path)
            _loaded.add(path)


def _load_file(path: str) -> None:
    content = vars(_imported(path))
    lists = {kind: content[kind.rows] for kind in KINDS if kind.rows in content}
    lists = {kind: rows for kind, rows in lists.items() if rows is not kind.registry()}  # it may have imported ours
    if not lists:
        expected = " or ".join(f"{kind.rows} = [{kind.row}(...)]" for kind in KINDS)
        raise PluginError(f"plugin {path} defines no rows.", f"Expected is {expected}.")
    for kind, rows in lists.items():
        _add(kind, rows, PluginSource(f"plugin {path}", path))


def _imported(path: str) -> ModuleType:
    """Executes the file as a module, and returns the module."""
    try:
        content = read_input(Path(path), MAX_PLUGIN_BYTES)
    except OSError as error:
        raise PluginError(
            f"plugin {path} cannot be read: {error.strerror}.", "Give the path of a Python file."
        ) from error
    module = ModuleType(f"ecdit_plugin_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(compile(decode_source(content), path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        hint = error.hint if isinstance(error, EcditError) else "Correct it, or do not name it with --plugin."
        raise PluginError(f"plugin {path} cannot be imported: {said_by(error, path)}.", hint) from error
    return module


def _load_packages() -> None:
    every = entry_points()
    for kind in KINDS:
        for entry in dict.fromkeys(every.select(group=kind.group)):
            package = f"package {entry.dist.name}" if entry.dist else "package"
            place = f"plugin {entry.name} = {entry.value} of the {package}"
            rows = _entry_rows(entry, place)
            file = getattr(sys.modules[entry.module], "__file__", None)
            _add(kind, rows if isinstance(rows, list | tuple) else [rows], PluginSource(place, file or place))


def _entry_rows(entry: EntryPoint, place: str) -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        file = getattr(sys.modules.get(entry.module), "__file__", None)
        raise PluginError(
            f"{place} cannot be imported: {said_by(error, file or '')}.", "Correct or uninstall the package."
        ) from error


def _add(kind: Kind, rows: Any, source: PluginSource) -> None:
    expected = f"a list of {kind.row}(...) is expected"
    if not isinstance(rows, list | tuple):
        raise PluginError(f"{source.place}: {kind.rows} is a {type(rows).__name__}, {expected}.")
    for row in rows:
        if not isinstance(row, kind.row_type()):
            raise PluginError(f"{source.place}: {kind.rows} holds a {type(row).__name__}, {expected}.")
        _add_row(kind, row, source)


def _add_row(kind: Kind, row: Any, source: PluginSource) -> None:
    from experiments.config.row_fields import check_fields

    registry, key = kind.registry(), (kind.word, row.name)
    try:
        check_fields(kind.word, row)
    except ConfigError as error:
        raise PluginError(f"{source.place}: {error.message}", error.hint) from error
    if not isinstance(row.name, str) or not NAME.fullmatch(row.name):
        raise PluginError(
            f"{source.place}: {on_one_line(repr(row.name))} cannot be the name of a {kind.word}.",
            "Use a letter and then at most 39 letters, digits, _ and -, in lower case.",
        )
    for name in (row.name, *getattr(row, "aliases", ())):
        owner = next((own for own, other in registry.items() if name in (own, *getattr(other, "aliases", ()))), None)
        if owner is not None or name == "all":
            whose = SOURCES[kind.word, owner].place if owner and (kind.word, owner) in SOURCES else "ecdit"
            raise PluginError(
                f"{source.place}: the {kind.word} {name!r} has the name of one of {whose}.", "Give it another name."
            )
    registry[row.name], SOURCES[key] = row, source
    try:
        if kind.word == "router":
            _check_router(row, source.place)
    except PluginError:
        del registry[row.name], SOURCES[key]
        raise


def _check_router(row: Any, place: str) -> None:
    """Checks what can be known of a router without torch. Raises `PluginError`."""
    from experiments.config.stored import buildable_config

    where = f"{place}: router {row.name!r}"
    if row.implementation is None:
        raise PluginError(f"{where} has no implementation.", "Give a subclass of Router, or 'module:Class'.")
    if isinstance(row.implementation, type):
        require_decision(where, row.implementation)
    try:
        buildable_config({"model": {"name": "nano"}, "routing": {"name": row.name}}, Path("row"))
    except EcditError as error:
        reason = error.message.removeprefix("row: ")
        raise PluginError(f"{where} has defaults that no model can be built with: {reason}") from error


def require_decision(where: str, implementation: type) -> None:
    """Raises `PluginError` where the class of a router has neither a `decide` nor an `assign` of its own."""
    own = [each for each in implementation.__mro__ if each.__module__ != "experiments.routing.router"]
    if not any(callable(vars(each).get(name)) for each in own for name in ("assign", "decide")):
        raise PluginError(
            f"{where}: {implementation.__name__} lacks the method decide.",
            "Define decide(self, logits_GSE, capacity) -> GroupDecision.",
        )
