"""Writes the model card of exported weights: a `README.md` with the header that the Hugging Face Hub reads.

The card says what the model is, what it was trained on and for how long, what was measured of these weights, and how to
load them. Everything comes from the records of the run. What they do not have is said to be missing, and the license is
left to whoever publishes the weights. Texts of records are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from analysis.escaping import markdown_code, markdown_text
from analysis.run_table import markdown, significant
from experiments.config.blocks import block_of
from experiments.config.caption_kinds import FeatureCaptions
from experiments.config.data_sets import captions_of, data_set_of
from experiments.config.metric_row import RecordedValue
from experiments.config.metrics import IMPORTED, METRICS, VELOCITY_ERROR
from experiments.config.objectives import OBJECTIVES
from experiments.config.routers import ROUTERS
from experiments.config.schema import RunConfig
from experiments.config.stored import stored_config
from experiments.records.exported_record import Exported
from experiments.records.record_types import EvalRow, RunRecord
from experiments.records.run_folder import RunDir
from experiments.records.writer import stored_rows

READER = """\
import json
from pathlib import Path

from safetensors.torch import load_file


def read_weights(folder):
    description = json.loads((Path(folder) / "model.json").read_text())
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    return description, tensors
"""
"""Reads a folder of exported weights without ecdit. `docs/how-to/publish-weights.md` shows it, and a test runs it."""
IN_TRAINING = tuple(RecordedValue(name, higher_is_better=False) for name in ("val_loss", VELOCITY_ERROR))
"""The values of the validation set that training records."""
NOT_RECORDED = "not recorded"

Facts = Iterator[tuple[str, str]]


def model_card(exported: Exported, run: RunDir) -> str:
    """Returns the card of weights that were exported from `run`. Raises `RecordError` where its records are damaged."""
    record = exported.record
    config = stored_config(record.config, run.run_json, record.plugin_names)
    rows = [row for row in stored_rows(run.evals, EvalRow) if _is_of_these_weights(row, exported)]
    kind = "mixture-of-experts " if config.routing.name != "dense" else ""
    where = "with ecdit" if record.imported is None else "elsewhere, and imported into ecdit"
    parts = [
        _header(config),
        f"# {markdown_text(record.name)}",
        f"This {kind}diffusion transformer makes images of {_asked_for(config)}. It was trained {where}.",
        "## Model",
        _table("property", "value", _about_model(exported, config)),
        "## Data and training",
        _table("property", "value", _about_training(exported, config)),
        "## Metrics",
        *_measured(rows, exported, config),
        "## How to load",
        *_how_to_load(config),
        "## License",
        "No license is stated: whoever publishes the weights chooses one that the training data allows.",
        "## Citation",
        "\n".join(f"- {markdown_text(source)}" for source in _sources(config)),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _header(config: RunConfig) -> str:
    """Returns the YAML header, in which names that are no plain words are quoted."""
    name = config.routing.name
    tags = ["diffusion", *(() if name == "dense" else ("mixture-of-experts", name))]
    task = {"pipeline_tag": "text-to-image"} if _asked_for(config) == "captions" else {}  # the Hub has none for classes
    header = {"library_name": "ecdit", **task, "tags": tags}
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _asked_for(config: RunConfig) -> str:
    """Returns what images are made of: captions, or classes."""
    return "captions" if config.data.num_classes is None else "classes"


def _table(first: str, second: str, facts: Facts) -> str:
    return markdown((first, second), list(facts), (True, True))


def _about_model(exported: Exported, config: RunConfig) -> Facts:
    record, model, routing = exported.record, config.model, config.routing
    row = ROUTERS.get(routing.name)
    yield "router", row.label if row is not None else f"{routing.name} (a plugin)"
    if routing.name != "dense":
        layers = f"{len(config.sparse_layer_indices)} of {model.num_layers} blocks"
        yield "experts", f"{routing.num_experts} in {layers}"
    yield "backbone", f"{model.name}: width {model.width}, {model.num_layers} blocks, {model.num_heads} heads"
    yield "block", block_of(config).label
    yield "patches", f"{model.patch_size} x {model.patch_size}"
    yield "objective", f"{OBJECTIVES[config.flow.objective].label}, the network predicts {config.flow.prediction}"
    yield "parameters", f"{record.params_total:,} ({significant(record.params_total)})"
    yield "activated parameters", f"{record.params_active:,} ({significant(record.params_active)})"
    yield "FLOPs of a forward pass, an image", significant(record.flops_per_image)
    average = "moving average (EMA)" if exported.weights == "ema" else "raw weights"
    width = "" if exported.ema_width is None else f" of width {exported.ema_width:g}"
    yield "weights", f"{average}{width}, {exported.precision}"


def _about_training(exported: Exported, config: RunConfig) -> Facts:
    record, data, optim = exported.record, config.data, config.optim
    side = f"{data.image_size} x {data.image_size}"
    pixels = f"images of {side} pixels" if data_set_of(config).has_pixels else f"latents of {side}"
    images = f"{pixels}, {data.channels} channels"
    if record.imported is None:
        yield "data set", f"{data.name}: {images}"
        if data.fingerprint is not None:
            yield "fingerprint of the data set", data.fingerprint
        yield "images seen", f"{exported.images_seen:,} in batches of {config.train.batch_images:,}"
        yield "training FLOPs as planned", significant(exported.images_seen * record.train_flops_per_image)
        yield "optimizer", f"{optim.name}, learning rate {optim.learning_rate:g}, schedule {optim.schedule}"
        yield "precision of training", record.precision
        yield from _about_lineage(record)
        yield "seed", str(config.seed)
    else:  # a file of weights says nothing of its training, and the settings have defaults in its place
        yield "images", images
        yield "imported from", f"a file of {record.imported.layout}'s public code, SHA-256 {record.imported.sha256}"
        yield "weights in that file", record.imported.weights or NOT_RECORDED
        yield "data set and training", NOT_RECORDED
    yield "config id", record.config_id
    yield "ecdit", record.versions.get("ecdit", NOT_RECORDED)
    yield "commit", record.git_commit or NOT_RECORDED


def _about_lineage(record: RunRecord) -> Facts:
    """Yields the runs that the weights come from, and the plugins that the model needs."""
    if record.parent is not None:
        yield "began from", f"{record.parent.name} after {record.parent.images:,} images"
    if record.images_before:
        yield "images before that", f"{record.images_before:,} ({significant(record.flops_before)} FLOPs)"
    if record.parts is not None:
        yield "merged from", ", ".join(part.name for part in record.parts)
    for plugin in record.plugins or ():
        yield "needs the plugin", f"{plugin.kind} {plugin.name}, SHA-256 {plugin.sha256}"


def _is_of_these_weights(row: EvalRow, exported: Exported) -> bool:
    return (row.images_seen, row.weights, row.settings.get("ema_width")) == (
        exported.images_seen, exported.weights, exported.ema_width,
    )  # fmt: skip


def _measured(rows: Sequence[EvalRow], exported: Exported, config: RunConfig) -> Iterator[str]:
    """Yields the table of the metrics, and what was not measured. The last of repeated measurements counts."""
    values = [*IN_TRAINING, *(value for row in METRICS.values() for value in row.values), *IMPORTED]
    cells = []
    for value in values:
        names = {value.name, *(f"{value.name}/{part}" for part in value.parts)}
        last = {(row.metric, _conditions(row)): row for row in rows if row.metric in names}
        cells += [
            (row.metric, _value(row, value), _interval(row, value), f"{row.num_samples:,}", settings)
            for (_, settings), row in last.items()
        ]
    described = f"of these weights after {exported.images_seen:,} images"
    if cells:
        yield f"Values {described}, with 95% intervals over images where they were recorded."
        yield markdown(
            ("metric", "value", "95% interval", "images", "conditions"), cells, (True, False, False, False, True)
        )
    measured = {row.metric for row in rows}
    missing = [
        row.name for row in METRICS.values()
        if measured.isdisjoint(value.name for value in row.values)
        and not (row.needs_routed_layers and config.routing.name == "dense")
    ]  # fmt: skip
    if missing:
        yield f"Not measured {described}: {', '.join(map(markdown_code, missing))}."


def _conditions(row: EvalRow) -> str:
    settings = {name: value for name, value in row.settings.items() if name != "ema_width"}
    shown = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()]
    return ", ".join([f"seed={row.seed}", *shown])


def _value(row: EvalRow, value: RecordedValue) -> str:
    return value.text(row.value) + (" (too few images)" if value.says_little(row.num_samples) else "")


def _interval(row: EvalRow, value: RecordedValue) -> str:
    if row.interval_low is None or row.interval_high is None:
        return NOT_RECORDED
    return f"{value.text(row.interval_low)} to {value.text(row.interval_high)}"


def _how_to_load(config: RunConfig) -> Iterator[str]:
    """Yields how the folder is read, with ecdit and without it."""
    of_classes, row = _asked_for(config) == "classes", data_set_of(config)
    if row.has_pixels and not isinstance(captions_of(config), FeatureCaptions):
        yield "With ecdit, where `FOLDER` is this folder:"
        example = 0 if of_classes else row.examples[-1]
        yield _python(
            "from experiments.evaluation.pipeline import Pipeline\n\n"
            'pipe = Pipeline.from_pretrained("FOLDER")\n'
            f"image = pipe({example!r}, guidance_scale={config.eval.guidance:g}).images[0]\n"
        )
    else:
        needs = {
            "the data set": " --data DATA" if config.data.path is not None else "",
            "the VAE": "" if row.has_pixels else " --vae VAE",
        }
        what = " and ".join(name for name, option in needs.items() if option)
        yield f"With ecdit, where `FOLDER` is this folder, and with {what}:"
        yield f"```bash\necdit sample FOLDER{' --class 0' * of_classes}{''.join(needs.values())}\n```"
    yield (
        "Without ecdit, `read_weights` returns the description of the model and its tensors by name. Nothing in the "
        "folder is executed by reading it."
    )
    yield _python(READER)


def _python(code: str) -> str:
    return f"```python\n{code}```"


def _sources(config: RunConfig) -> Iterator[str]:
    """Yields the systems to cite: the project, the router, and the objective."""
    yield "ecdit: scaling studies of mixture-of-experts diffusion transformers"
    row = ROUTERS.get(config.routing.name)
    if row is not None and row.source:
        yield f"{row.label}: {row.source}"
    yield f"{block_of(config).label}: {block_of(config).source}"
    objective = OBJECTIVES[config.flow.objective]
    yield f"{objective.label}: {objective.source}"
