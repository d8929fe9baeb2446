"""Says which plugins a run uses, with the hash of their source, and holds it against what is in `run.json`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.inputs import sha256_of_files
from experiments.plugins.sources import SOURCES
from experiments.records.record_types import PluginRecord, RunRecord
from experiments.records.same_plugins import require_same_plugins


def plugin_records(config: RunConfig) -> list[PluginRecord] | None:
    """Returns the plugins that a run of `config` uses; None where it uses none."""
    return _router_record(config.routing.name)


def require_plugins(record: RunRecord, file: Path) -> None:
    """Checks that the plugins of the run described in `file` are loaded, with the source that it was trained with.

    Raises `RecordError` naming the plugin. Figures and tables need no plugin, since they only read records.
    """
    require_same_plugins(record, _router_record(str(record.config.get("routing", {}).get("name"))), file)


def _router_record(name: str) -> list[PluginRecord] | None:
    source = SOURCES.get(("router", name))
    if source is None:
        return None
    files = dict.fromkeys((source.file, _code_file(ROUTERS[name].implementation)))
    sha256 = sha256_of_files(*(Path(file) for file in files if file is not None and os.path.isfile(file)))
    return [PluginRecord(kind="router", name=name, sha256=sha256, source=source.place)]


def _code_file(code: str | type | None) -> str | None:
    """Returns the file in which a class is, which may be another than that of its row; None where it is not known.

    It does not import the class, since that may import torch.
    """
    module = code.partition(":")[0] if isinstance(code, str) else getattr(code, "__module__", "")
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # whoever builds the router says what is wrong with its name
        return None
    return None if spec is None else spec.origin
