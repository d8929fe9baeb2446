"""Imports the libraries of an extra such as `ecdit[data]`, only when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from experiments.errors import ConfigError


def library(name: str, extra: str = "data") -> Any:
    """Imports a module of an extra of ecdit. Raises `ConfigError` with a remedy where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"cannot import {name}: there is no module {error.name!r}.", install(extra)) from error


def install(extra: str) -> str:
    """Returns the way out where a library of an extra is missing."""
    return f"Install what it needs with: pip install 'ecdit[{extra}]'."
