"""Makes a run of weights that DiT's or DiT-MoE's public code has saved (`ecdit import-weights`).

The file is read without executing what it says: tensors, containers of Python and argparse's namespace of options are
accepted, and nothing else. `public_layouts.py` translates the tensors. The result is a run folder like any other, with
a checkpoint and no steps, which `ecdit sample`, `evaluate` and `plot` take.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.config.budget import budget
from experiments.config.checks import check_config
from experiments.config.presets import PRESETS
from experiments.config.schema import RunConfig
from experiments.config.stored import stored_config
from experiments.errors import CheckpointError, ConfigError
from experiments.evaluation.exchange.exported_weights import folder_that_appears_whole, require_new_folder
from experiments.evaluation.exchange.public_layouts import PublicSizes, PublicTensors, public_sizes, translated
from experiments.evaluation.sampling.finite import require_finite_weights
from experiments.inputs import sha256_of_files
from experiments.models.dit import DiT
from experiments.records.record_types import ImportedRecord, RunRecord, Weights
from experiments.records.run_folder import RunDir
from experiments.records.writer import RecordWriter
from experiments.text import printable, shortened
from experiments.training.checkpoint_files import write_checkpoint
from experiments.training.description import describe_run

Layout = Literal["dit", "dit-moe"]
Objective = Literal["rectified_flow", "ddpm"]
KEYS_OF_WEIGHTS: dict[Weights, tuple[str, ...]] = {"ema": ("ema",), "raw": ("model", "module")}
"""The entries of a checkpoint of the public training scripts; `module` is that of DeepSpeed's."""
NO_TENSORS = "holds no tensors by name."


def import_weights(
    layout: Layout, file: Path, out: Path, objective: Objective, weights: Weights | None, num_heads: int | None,
    top_k: int, command: Sequence[str],
) -> RunRecord:  # fmt: skip
    """Writes the run folder `out` with the weights in `file`, and returns its record.

    `weights` None takes the average where the file has one. `num_heads` is needed where no preset of DiT has the sizes
    of the model. Raises `OutputError` where `out` exists, `CheckpointError` for a file that cannot be read or is not of
    this layout, `RecordError` for sizes that no model can have, `ConfigError` for options that do not fit. `out`
    appears whole or not at all.
    """
    require_new_folder(out)
    state, kind = _state_of(_read(file), file, weights)
    tensors = PublicTensors(state, printable(str(file)))
    sizes = public_sizes(tensors)
    config = _config_of(layout, sizes, objective, num_heads, top_k, file)
    model = DiT(config)
    assert model.position_TD is not None, "the public networks add a table of positions"
    found = translated(tensors, sizes, model.position_TD)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = [
        f"{name} {tuple(found[name].shape)} in place of {tuple(shape)}"
        for name, shape in expected.items()
        if found[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{printable(str(file))} has tensors of other shapes than a model of its sizes: {', '.join(wrong)}.",
            "Name a checkpoint of this layout.",
        )
    require_finite_weights(found.items(), printable(str(file)))
    origin = ImportedRecord(layout=layout, objective=objective, sha256=sha256_of_files(file), weights=kind)
    described = describe_run(config, "fp32", budget(config), command)
    record = described.model_copy(update={"imported": origin})
    with folder_that_appears_whole(out) as folder:
        run = RunDir(folder)
        writer = RecordWriter.open(run, record, images_seen=0)
        try:
            both = {"weights": found, "ema": found}  # commands ask for the one set of weights under both names
            write_checkpoint(run, record.config_id, {"images_seen": 0}, both, keep=1)
            writer.status("done", 0, checkpoint_images=0)
        finally:
            writer.close()
    return record


def _read(file: Path) -> Mapping[str, Any]:
    """Reads a file of `torch.save` without executing what it says. Raises `CheckpointError` for any other."""
    name = printable(str(file))
    if not file.is_file():
        raise CheckpointError(f"{name} is not a file.", "Name a checkpoint that torch.save has written.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of in a strange file is refused below
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {asked[1]}, which could execute code" if asked else "holds more than tensors"
        raise CheckpointError(
            f"{name} {what}: it is not read.", "Save the tensors alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = shortened(printable(" ".join(str(error).split())), 120)
        raise CheckpointError(f"{name} is not a file of torch.save ({reason}).", "Name another checkpoint.") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{name} {NO_TENSORS}", "Name a checkpoint of the public code.")
    return found


def _state_of(
    content: Mapping[str, Any], file: Path, weights: Weights | None
) -> tuple[dict[str, Tensor], Weights | None]:
    """Returns the named tensors of a checkpoint and which of its weights they are, None where it does not say."""
    kind: Weights | None = None
    entries = {kind: key for kind, keys in KEYS_OF_WEIGHTS.items() for key in keys if key in content}
    if not entries:
        state: Any = content
        if weights is not None:
            raise ConfigError(
                f"{printable(str(file))} holds one set of weights, without saying which.", "Leave out --weights."
            )
    else:
        kind = weights or next(iter(entries))
        if kind not in entries:
            raise ConfigError(f"{printable(str(file))} has no {kind} weights.", f"Use --weights {next(iter(entries))}.")
        state = content[entries[kind]]
    if not isinstance(state, Mapping) or not all(isinstance(each, Tensor) for each in state.values()):
        raise CheckpointError(f"{printable(str(file))} {NO_TENSORS}", "Name a checkpoint of the public code.")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}, kind


def _config_of(
    layout: Layout, sizes: PublicSizes, objective: Objective, num_heads: int | None, top_k: int, file: Path
) -> RunConfig:
    """Returns the settings of the model.

    Raises `CheckpointError` for another layout, `ConfigError` for options that do not fit, and `RecordError` for sizes
    that no model can have.
    """
    if (layout == "dit-moe") != (sizes.num_experts > 0):
        raise CheckpointError(
            f"{printable(str(file))} has {'experts' if sizes.num_experts else 'no experts'}, and is not of {layout}.",
            f"Use {'dit-moe' if sizes.num_experts else 'dit'}.",
        )
    family = {
        name: row for name, row in PRESETS.items() if name.startswith("dit-moe-" if sizes.num_experts else "dit-")
    }
    alike = [name for name, row in family.items() if (row.width, row.num_layers) == (sizes.width, sizes.num_layers)]
    num_heads = _heads_of(sizes, num_heads, family[alike[0]].num_heads if alike else None, file)
    factor = sizes.hidden / sizes.width
    model = {
        "name": [*alike, *family][0], "block": "dit", "sparse_layers": "all",
        "width": sizes.width, "num_layers": sizes.num_layers, "num_heads": num_heads, "num_kv_heads": num_heads,
        "patch_size": sizes.patch_size, "learn_sigma": sizes.learn_sigma,
        # DiT-MoE's rectified flow hands t in [0, 1] to the embedding of DiT's steps from 0 to 999.
        "time_scale": 1.0 if objective == "rectified_flow" else 1000.0,
        "qk_norm": "off" if sizes.head_size is None else "affine",
        "ffn_factor": 4.0 if sizes.num_experts else factor,
    }  # fmt: skip
    routing: dict[str, Any] = {"name": "dense"}
    if sizes.num_experts:
        routing = {
            "name": "shared_expert", "num_experts": sizes.num_experts, "top_k": top_k, "expert_factor": factor,
            "shared_factor": sizes.shared_hidden / sizes.width,
        }  # fmt: skip
    # With DDPM the variance is learned where the head has outputs for it.
    flow = {"objective": objective, "learned_sigma": objective == "ddpm" and sizes.learn_sigma}
    settings = {
        "model": model, "routing": routing, "flow": flow, "eval": {"sample_images": 0},
        "data": {
            "name": "imagenet", "image_size": sizes.image_size, "channels": sizes.channels,
            "num_classes": sizes.num_classes,
        },
    }  # fmt: skip
    config = stored_config(settings, file)
    check_config(config)
    return config


def _heads_of(sizes: PublicSizes, asked: int | None, of_preset: int | None, file: Path) -> int:
    """Returns the number of heads: that of the norms in the file, or what is `asked`, or that of the preset of DiT.

    Raises `ConfigError` where none of them says it, and where the file and what is asked disagree.
    """
    name = printable(str(file))
    if sizes.head_size is not None:
        told = sizes.width // sizes.head_size
        if asked not in (None, told):
            raise ConfigError(
                f"--num-heads {asked} does not fit {name}, whose norms of queries are those of {told} heads.",
                "Leave out --num-heads.",
            )
        return told
    found = asked or of_preset
    if found is None:
        raise ConfigError(
            f"{name} does not say how many heads attention has, and DiT has no size of {sizes.num_layers} layers of "
            f"width {sizes.width}.",
            "Name it with --num-heads.",
        )
    return found
