"""Imports the code of a public network from a checkout that the user names; nothing of it is installed or copied.

Repositories call their packages `models` or `diffusion`, so that modules of a checkout do not stay imported: the next
one would get those of the first. Where a file imports a package that a training step does not use, an empty module
takes its place, installed or not, so that the user need not install it and neither its import nor its memory counts.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.benchmarks.public_networks import PublicNetwork
from experiments.errors import EcditError


class Checkout:
    """A folder with the code of a public network."""

    def __init__(self, network: PublicNetwork, folder: Path) -> None:
        """Raises `EcditError` where `folder` is no checkout of that repository."""
        self.network, self.folder = network, folder.absolute()
        clone = f"git clone https://github.com/{network.repository}"
        if not folder.is_dir():
            raise EcditError(f"--peer-path {folder} is no folder.", f"Name a checkout, for example of: {clone}.")
        for file in network.files:
            if not (folder / file).is_file():
                raise EcditError(
                    f"--peer-path {folder} is no checkout of {network.repository}: it has no {file}.",
                    f"Name a checkout, for example of: {clone}.",
                )

    def modules(self, *names: str) -> list[Any]:
        """Imports modules of the checkout. Raises `EcditError` for a missing package and for other code."""
        try:
            return list(import_from(self.folder, names, self.network.unused))
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if missing in {name.split(".")[0] for name in names}:
                raise self.changed(error) from error
            raise EcditError(
                f"{self.network.repository} imports {missing!r}, which is not installed here.",
                f"Install it beside ecdit: pip install {missing}.",
            ) from error
        except Exception as error:
            raise self.changed(error) from error

    def changed(self, error: Exception) -> EcditError:
        """Returns the error for code that fails, as that of another commit or beside another package does."""
        return EcditError(
            f"The code in {self.folder} failed: {type(error).__name__}: {error}.",
            f"ecdit was tested with {self.network.repository} at {self.network.commit}, which can be checked out.",
        )


def import_from(folder: Path, names: Sequence[str], unused: Sequence[str] = ()) -> list[ModuleType]:
    """Imports modules that lie in `folder`, which do not stay imported, with empty ones in the place of `unused`."""
    before, packages = set(sys.modules), {name.split(".")[0] for name in names}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        with _in_their_place(unused):
            return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in packages:
                del sys.modules[name]


class _UnusedModule(ModuleType):
    """A module in which every name is an empty torch module, so that classes can be derived from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        from torch import nn

        return type(name, (nn.Module,), {})


@contextmanager
def _in_their_place(unused: Sequence[str]) -> Iterator[None]:
    """Puts an empty module in the place of each of `unused` within this context."""
    before = {name: sys.modules.get(name) for name in unused}
    sys.modules.update({name: _UnusedModule(name) for name in unused})
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
