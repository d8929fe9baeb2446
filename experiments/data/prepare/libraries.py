"""Imports the libraries of the extra `ecdit[data]`, only when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from experiments.errors import ConfigError

INSTALL = "Install what it needs with: pip install 'ecdit[data]'."


def library(name: str) -> Any:
    """Imports a module of the extra `ecdit[data]`. Raises `ConfigError` with a remedy where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"cannot import {name}: there is no module {error.name!r}.", INSTALL) from error
