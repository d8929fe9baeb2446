"""Reads `model.json`, which describes the weights in a folder of `ecdit export-weights`.

Such a folder may come from a stranger. `evaluation/exchange/exported_weights.py` writes it, and
`training/exported_tensors.py` reads its tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from experiments.errors import RecordError
from experiments.inputs import read_input, unique_keys
from experiments.records.record_types import Precision, Record, RunRecord, Weights
from experiments.records.run_folder import RunDir
from experiments.text import printable, shortened

MAX_DESCRIPTION_BYTES = 2**28
"""The largest `model.json` that is read. It takes about 120 bytes for each shard, of which there can be many."""
EXPORT_AGAIN = "Export the run again."


class Exported(Record):
    """The content of `model.json`: the record of the run, the kind of its weights, and the checksum of every file."""

    record: RunRecord
    images_seen: int = Field(ge=0, lt=2**63)
    weights: Weights
    precision: Precision
    sha256: dict[str, str]
    ema_width: float | None = Field(None, gt=0, le=1)
    router_state: dict[str, Any] | None = None
    """The numbers of router states (`training/router_states.py`)."""

    def files(self, folder: RunDir) -> dict[Path, str]:
        """Returns the checksums by path. A path is always inside the folder, whatever `model.json` says."""
        return {folder.path / Path(name).name: digest for name, digest in self.sha256.items()}


def read_exported(folder: RunDir) -> Exported:
    """Reads `model.json`. Raises `RecordError` where it cannot be read or is not as expected."""
    path = folder.exported
    try:
        raw = json.loads(read_input(path, MAX_DESCRIPTION_BYTES), object_pairs_hook=unique_keys)
        return Exported.model_validate(raw, strict=True)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.", EXPORT_AGAIN) from error
    except RecursionError as error:
        raise RecordError(f"{path} is damaged: it is nested too deeply.", EXPORT_AGAIN) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        reason = shortened(printable(f"{where}{first['msg']}"), 200)
        raise RecordError(f"{path} is damaged: {reason}.", EXPORT_AGAIN) from error
    except ValueError as error:
        raise RecordError(f"{path} is damaged: it is not JSON ({error}).", EXPORT_AGAIN) from error
