"""Reads one run folder for analysis: as a run that finished, one that diverged, or one left out with a reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis.parameter_counts import counts_without_embeddings
from analysis.shared_trunks import TRUNK, trunk_of
from analysis.tuned_arms import tuned_facts
from experiments.config.placement import KEY as KEY_OF_PLACEMENT
from experiments.config.stored import stored_config
from experiments.errors import RecordError
from experiments.records.divergence import diverged_at
from experiments.records.record_types import ImportedRecord, RunRecord, Status
from experiments.records.run_folder import RunDir
from experiments.records.wandb_mirror import mirror_id
from experiments.settings_id import dotted, num_processes_counted
from experiments.text import encodable

WITHOUT_EFFECT = (
    "log.", "wandb.", "checkpoint.", "parallel.", "data.path",
    "eval.every_images", "eval.sample_images", "eval.sample_steps", "eval.guidance",
    "eval.metric_images", "train.implementation",
)  # fmt: skip
"""Settings that do not change the losses: runs that differ in nothing else are copies of each other.

The path of a data set is one of them, as `data.fingerprint` says which set it is. Where the sparse layers would be
has no effect on a dense model either (`_described`). The number of processes has one where routing groups depend on it,
for which there is the column `PROCESSES`.
"""

PROCESSES = "routing.world"
"""The column that holds the number of processes where routing groups depend on it, and 1 elsewhere. It makes arms, as
settings of routing do, although no user sets it."""

BEGAN_FROM = "train.init_from"
"""The setting whose column says what the parent was, since a path would make an arm of each place and seed."""
IMPORTED = "train.init_imported"
"""The column that says which public weights a run holds. No user sets it, and it is not part of the config id."""
WITH_FIELDS = {"config", "params_by_part", "versions", "plugins", "tuned", "parent", "parts", "imported"}
"""The fields of a record that are records or mappings themselves, and therefore no columns."""
RECORD_COLUMNS = [name for name in RunRecord.model_fields if name not in WITH_FIELDS]


@dataclass(frozen=True)
class LeftOutRecord:
    """A run or row that is not in the frames, and the reason."""

    run: str
    reason: str

    def __str__(self) -> str:
        """Writes the run and the reason as one line."""
        return f"{self.run}: {self.reason}"


class FinishedRun(NamedTuple):
    """A finished run: its row of `runs`, its W&B id, and as text those of its settings that change the losses."""

    run: str
    row: dict[str, Any]
    mirror_id: str
    settings: str
    balance_loss: str | None
    """Says how the balance losses of its layers were combined, or None where at most one layer has one."""


class DivergedRun(NamedTuple):
    """A run that diverged: its row of `Records.diverged.runs`, and its entry in the list of what was left out.

    `mirror_id` and `settings` tell copies, as in `FinishedRun`.
    """

    run: str
    row: dict[str, Any]
    left_out: LeftOutRecord
    mirror_id: str
    settings: str


def read_found_run(run: RunDir) -> FinishedRun | DivergedRun | LeftOutRecord:
    """Reads one run that finished or diverged, or says why it is left out."""
    if encodable(str(run.path)) != str(run.path):
        return LeftOutRecord(
            str(run.path), "its path is not valid Unicode, which tables cannot hold: rename the folder"
        )
    try:
        status = run.read_status()
        if status is None:
            return LeftOutRecord(str(run.path), "it has no status.json")
        if status.state != "done":
            progress = f"{status.images_seen:,} of {status.images_total:,} images"
            reason = f": {status.reason}" if status.reason else ""
            if (images := diverged_at(status)) is not None:
                found = _described(run, run.read_run(), status)
                left_out = LeftOutRecord(found.run, f"diverged at {progress}{reason}")
                row = found.row | {"diverged_at_images": images}
                return DivergedRun(found.run, row, left_out, found.mirror_id, found.settings)
            return LeftOutRecord(str(run.path), f"{status.state} at {progress}{reason}")
        return _described(run, run.read_run(), status)
    except RecordError as error:
        return LeftOutRecord(str(run.path), (run.newer_version() or error).message)


def _described(run: RunDir, record: RunRecord, status: Status) -> FinishedRun:
    config = stored_config(record.config, run.run_json, record.plugin_names)
    settings = {"train.ema": config.train.ema, **dict(dotted(record.config))}
    settings[PROCESSES] = int(num_processes_counted(record.config))
    settings["train.precision"] = record.precision  # what `auto` became there, as losses of bf16 and fp32 differ
    if record.plugins:  # two versions of the source of a router are two arms, and their runs are no copies
        settings["routing.plugin"] = record.plugins[0].sha256[:12]
    if record.imported:  # other weights are another arm too, whatever their settings
        settings[IMPORTED] = _origin(record.imported)
    fingerprint = settings.pop("train.init_fingerprint", None)
    if lineage := _lineage(record):
        settings[BEGAN_FROM] = lineage
    facts = record_facts(record) | counts_without_embeddings(record)
    if record.parts:  # the others were trained on as many images as the first, of which the merged run has the number
        facts["images_before"] += (len(record.parts) - 1) * status.images_seen
    seen = {"images_seen": status.images_seen, "peak_memory_gib": status.peak_memory_gib}
    without_effect = (*WITHOUT_EFFECT, KEY_OF_PLACEMENT) if config.routing.name == "dense" else WITHOUT_EFFECT
    compared = sorted((key, value) for key, value in settings.items() if not key.startswith(without_effect))
    facts["versions"] = ", ".join(f"{name} {text}" for name, text in sorted(record.versions.items()))
    row = {"run": str(run.path), **seen, **facts, TRUNK: trunk_of(record.config.get("optim", {}), compared), **settings}
    compared += [("train.init_fingerprint", fingerprint)] if fingerprint else []
    balance_loss = (status.balance_loss or "mean over layers") if config.has_balance_losses else None
    return FinishedRun(row["run"], row, mirror_id(record), json.dumps(compared), balance_loss)


def _lineage(record: RunRecord) -> str:
    """Says where the first weights of a run come from, such as `dense of 3,200 images`; parents of parents follow.

    Imported weights have seen no images here. The text is empty for a run that began from scratch.
    """
    ancestors = () if record.parent is None else record.parent.ancestors
    return ", ".join(
        f"{each.router} of {each.images:,} images" if each.images else f"{each.router} trained elsewhere"
        for each in ancestors
    )


def _origin(imported: ImportedRecord) -> str:
    """Says which weights a run holds, such as `weights 0123456789ab ema`, so that others are told from them."""
    return " ".join(["weights", imported.sha256[:12], *([imported.weights] if imported.weights else [])])


def record_facts(record: RunRecord) -> dict[str, Any]:
    """Returns the columns of a run that its record holds beside the settings."""
    facts = {name: getattr(record, name) for name in RECORD_COLUMNS} | tuned_facts(record)
    parent, imported = record.parent, record.imported
    return facts | {
        "parent": None if parent is None else parent.name,
        "trunk_images": None if parent is None or not parent.is_trunk else parent.images,
        "flops_before": record.flops_before,
        "images_before": record.images_before,
        "parts": None if record.parts is None else ", ".join(part.name for part in record.parts),
        "imported": None if imported is None else imported.layout,
    }
