"""`ecdit doctor` says whether this machine and environment can run the suite, and what they lack.

A check is `ok`, a `note` (nothing is broken, but worth knowing) or `missing` (a run would fail). The exit code is
1 when something is missing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from analysis.columns import Column
from ecdit_cli._console import print_rows
from ecdit_cli._options import Json

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

COLUMNS = (
    Column("check", "check"),
    Column("state", "state"),
    Column("found", "found", prose=True),
    Column("hint", "hint", prose=True),
)
FAST_INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16")


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    check: str
    state: Literal["ok", "note", "missing"]
    found: str
    hint: str | None = None


def doctor(as_json: Json = False) -> None:
    """Check what this machine and this environment offer."""
    checks = [*_versions(), _sweeps_is_ours(), _folder(), *_machine()]
    print_rows([asdict(check) for check in checks], COLUMNS, as_json, title="Environment")
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


def _versions() -> Iterator[Check]:
    """Checks Python and every dependency against the ranges that the package declares."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        package = distribution("ecdit")
    except PackageNotFoundError:
        yield Check("ecdit", "missing", "not installed", "Run `pip install -e .` in its folder, or `make setup`.")
        return
    yield version_check("python", platform.python_version(), SpecifierSet(package.metadata["Requires-Python"]))
    for line in package.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield version_check(requirement.name, _installed(requirement.name), requirement.specifier)


def version_check(name: str, version: str | None, allowed: SpecifierSet) -> Check:
    """Checks whether `version` (None: not installed) lies in the range."""
    if version is None:
        return Check(name, "missing", "not installed", f"Install {name}{allowed}.")
    if not allowed.contains(version, prereleases=True):
        return Check(name, "missing", version, f"Install {name}{allowed}.")
    return Check(name, "ok", version)


def _installed(name: str) -> str | None:
    from importlib.metadata import distributions

    return next((found.version for found in distributions(name=name)), None)


def _sweeps_is_ours() -> Check:
    """Checks that `sweeps` is our package: `wandb[sweeps]` installs another one of the same name."""
    spec = importlib.util.find_spec("sweeps")
    home = Path(spec.origin).parent if spec is not None and spec.origin else None
    if home != Path(__file__).parent.parent / "sweeps" or _installed("sweeps") is not None:
        return Check("sweeps", "missing", str(home), "Run `pip uninstall sweeps`, then install ecdit again.")
    return Check("sweeps", "ok", "ours")


def _folder() -> Check:
    """Checks that the working folder, below which runs are written by default, can be written."""
    try:
        here = Path.cwd()
        with tempfile.TemporaryFile(dir=here):
            free_gib = shutil.disk_usage(here).free / 2**30
    except OSError as error:
        return Check("folder", "missing", str(error.strerror), "Change to a folder you can write to.")
    return Check("folder", "ok", f"{here}, {free_gib:.0f} GiB free")


def _machine() -> Iterator[Check]:
    """Reports processor, threads, accelerator and compiler, which decide the speed; none of them is required."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    found = [name for name in FAST_INSTRUCTIONS if capabilities.get(name)]
    has_bf16 = any(name in found for name in ("amx_bf16", "avx512_bf16", "bf16"))
    hint = None if has_bf16 else "No bf16 in hardware: train.precision=auto will be fp32 on this processor."
    yield Check("processor", "ok" if has_bf16 else "note", ", ".join(found) or platform.machine(), hint)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Check("threads", "ok", f"{os.cpu_count()} cores, OMP_NUM_THREADS {threads}")
    if torch.cuda.is_available():
        yield Check("accelerator", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    else:
        yield Check("accelerator", "note", "none", "The presets nano, micro and mini are made for processors.")
    yield _compiler(torch.accelerator.is_available())


def _compiler(on_accelerator: bool) -> Check:
    """Checks for a C compiler, which Triton needs to build kernels for an accelerator; nothing else is compiled."""
    from experiments.accelerated import has_compiler

    if not on_accelerator:
        return Check("compiler", "ok", "not needed")
    if has_compiler():
        return Check("compiler", "ok", "for Triton's kernels")
    hint = "Training and sampling will be slower without Triton's kernels: install gcc or clang."
    return Check("compiler", "note", "none", hint)
