"""A merged run: whose weights it has, what its routers are made of, and which runs are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.data.loader import validation_set
from experiments.errors import ConfigError, EcditError, OutputError, RecordError
from experiments.evaluation.exchange.merged_run import MergeOptions, merge_runs
from experiments.evaluation.exchange.prompt_rows import num_calls, row_from_captions
from experiments.evaluation.sampling.load_run import LoadedRun, load_run
from experiments.records.record_types import ParentRecord, Status
from experiments.records.run_folder import RunDir
from experiments.records.writer import write_json_atomic, write_status
from experiments.training.checkpoint_files import write_checkpoint
from tests.training_runs import random_run_folder

DENSE = ("routing=dense", "eval.images=6", "eval.batch_images=4", "data.image_size=16", "model.num_layers=4")
RANDOM = MergeOptions(top_k=2, sparse_layers="alternate", from_prompts=False)
LAYERS = (1, 3)


class Silent:
    """A display that shows nothing and counts the calls of models."""

    def __init__(self) -> None:
        self.counted: list[tuple[int, list[int]]] = []

    def part(self, doing: str) -> None:
        pass

    def counter(self, total: int, doing: str | None = None) -> Callable[[], None]:
        calls: list[int] = []
        self.counted.append((total, calls))
        return lambda: calls.append(1)

    def say(self, line: str) -> None:
        pytest.fail(line)


@pytest.fixture
def parts(tmp_path: Path) -> list[RunDir]:
    return [random_run_folder(tmp_path / f"dense{seed}", *DENSE, f"seed={seed}") for seed in range(3)]


def merged(parts: list[RunDir], out: Path, options: MergeOptions = RANDOM, display: Silent | None = None) -> LoadedRun:
    merge_runs(parts, out, options, ["ecdit", "merge"], display or Silent())
    return load_run(RunDir(out), "ema", pytest.fail)


def loaded(run: RunDir) -> LoadedRun:
    return load_run(run, "ema", pytest.fail)


def test_experts_are_the_feed_forwards_of_the_runs_and_all_else_is_the_first_runs(
    parts: list[RunDir], tmp_path: Path
) -> None:
    found = merged(parts, tmp_path / "out").model.state_dict()
    dense = [loaded(part).model.state_dict() for part in parts]
    for layer in LAYERS:
        ffn = f"blocks.{layer}.ffn"
        for expert, weights in enumerate(dense):
            assert torch.equal(found[f"{ffn}.experts.w_in_EFD"][expert], weights[f"{ffn}.w_in.weight"])
            assert torch.equal(found[f"{ffn}.experts.w_out_EFD"][expert], weights[f"{ffn}.w_out.weight"].T)
    others = {name for name in dense[0] if not name.startswith(tuple(f"blocks.{layer}.ffn." for layer in LAYERS))}
    assert {name for name in found if ".experts." not in name and ".router." not in name} == others
    assert all(torch.equal(found[name], dense[0][name]) for name in others)


@pytest.mark.parametrize(
    ("top_k", "sparse_layers", "settings"),
    [
        (1, "alternate", ()),
        (2, "all", ()),
        (2, "all", ("model.block=dit", "model.ffn=gelu")),
        (2, "alternate", ("model.block=dit", "model.ffn=swiglu")),
        (2, "alternate", ("model.ffn=swiglu",)),
    ],
)
def test_experts_with_equal_weights_make_the_model_of_each_run(
    top_k: int, sparse_layers: Any, settings: tuple[str, ...], tmp_path: Path
) -> None:
    """The gates of a token sum to 1, so that the router has no say."""
    parts = [random_run_folder(tmp_path / f"dense{seed}", *DENSE, *settings, f"seed={seed}") for seed in range(3)]
    first = loaded(parts[0])
    biases = [parameter for name, parameter in first.model.named_parameters() if name.endswith("ffn.w_in.bias")]
    assert len(biases) == (4 if "model.block=dit" in settings else 0)
    assert all(bias.any() for bias in biases)
    for part in parts[1:]:
        both = {"weights": first.model.state_dict(), "ema": first.model.state_dict()}
        write_checkpoint(part, part.read_run().config_id, {"images_seen": 640}, both, keep=1)
    options = MergeOptions(top_k, sparse_layers, from_prompts=bool(settings), num_prompts=2 if settings else None)
    display = Silent()
    model = merged(parts, tmp_path / "out", options, display).model
    batch = validation_set(first.config)[0]
    with torch.no_grad():
        velocity, expected = (
            each(batch.noise_BCHW, batch.time_B, batch.caption).velocity_BKP for each in (model, first.model)
        )
    torch.testing.assert_close(velocity, expected)


def inputs_of_last_call(run: LoadedRun, layer: int) -> torch.Tensor:
    """What the layer reads at the last step for each conditional image, by a sampler that is written out."""
    read: list[torch.Tensor] = []
    hook = run.model.blocks[layer].ffn.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    steps, last = run.config.eval.sample_steps, []
    for batch in validation_set(run.config):
        x_BCHW, null_BL = batch.noise_BCHW, torch.zeros_like(batch.caption_BL)
        null_BL[:, 0] = 1
        for step in range(steps):
            time_B = torch.full((len(x_BCHW),), 1 - step / steps)
            with torch.no_grad():
                u = run.model.to_image(run.model(x_BCHW, time_B, null_BL).velocity_BKP)
                c = run.model.to_image(run.model(x_BCHW, time_B, batch.caption_BL).velocity_BKP)
            x_BCHW = x_BCHW - (u + run.config.eval.guidance * (c - u)) / steps
        last.append(read[-1])
    hook.remove()
    return torch.cat(last)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_row_is_the_direction_of_the_mean_token_at_the_last_step(guidance: float, tmp_path: Path) -> None:
    parts = [
        random_run_folder(tmp_path / f"dense{seed}", *DENSE, f"seed={seed}", f"eval.guidance={guidance}")
        for seed in range(2)
    ]
    options, display = MergeOptions(2, "alternate", from_prompts=True), Silent()
    found = merged(parts, tmp_path / "out", options, display)
    for layer in LAYERS:
        rows_ED = found.model.blocks[layer].ffn.router.weight_DE.T
        for row_D, part in zip(rows_ED, parts, strict=True):
            mean_D = inputs_of_last_call(loaded(part), layer).mean(dim=(0, 1))
            torch.testing.assert_close(row_D, mean_D / mean_D.norm(), atol=1e-5, rtol=1e-4)
    expected = num_calls(found.config, 6)
    assert [(total, len(calls)) for total, calls in display.counted] == [(expected, expected)] * 2


def test_fewer_captions_give_another_row(parts: list[RunDir]) -> None:
    run = loaded(parts[0])
    few, many = (row_from_captions(run, LAYERS, number, lambda: None)[3] for number in (1, 6))
    assert not torch.allclose(few, many)
    assert float(few.norm()) == pytest.approx(1)


def test_random_rows_depend_on_the_seed_of_the_first_run_alone(parts: list[RunDir], tmp_path: Path) -> None:
    orders = [parts, [parts[0], parts[2], parts[1]], parts[::-1]]
    rows = [
        merged(order, tmp_path / f"out{number}").model.blocks[3].ffn.router.weight_DE
        for number, order in enumerate(orders)
    ]
    torch.testing.assert_close(rows[0].norm(dim=0), torch.ones(3))
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_the_folder_says_what_it_was_made_of_and_is_done(parts: list[RunDir], tmp_path: Path) -> None:
    out = RunDir(tmp_path / "out")
    merged(parts, out.path)
    record, status = out.read_run(), out.read_status()
    of_parts = [part.read_run() for part in parts]
    assert record.parts is not None
    assert [(part.name, part.config_id) for part in record.parts] == [(each.name, each.config_id) for each in of_parts]
    assert {part.num_captions for part in record.parts} == {None}
    assert record.train_flops_per_image == sum(each.train_flops_per_image for each in of_parts)
    assert record.config["routing"]["name"] == "segmoe"
    assert status is not None
    assert (status.state, status.images_seen, status.checkpoint_images) == ("done", 640, 640)
    rows = out.read_rows(out.evals).rows
    losses = {row["weights"]: row["value"] for row in rows if row["metric"] == "val_loss"}
    assert losses["raw"] == losses["ema"] > 0
    assert {row["layer"] for row in out.read_rows(out.routing).rows} == set(LAYERS)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_the_first_weights_of_the_parts_have_cost_counts_once(parts: list[RunDir], tmp_path: Path) -> None:
    """One part continued on the trunk of a shorter run, whose images are its own."""
    parent = ParentRecord(
        name="parent", config_id="0" * 10, images=320, router="dense", weights="ema", fingerprint="f" * 16,
        train_flops=7.0,
    )  # fmt: skip
    trunk = ParentRecord(name="shorter", config_id="1" * 10, images=160, parent=parent)
    for part, before in zip(parts, (parent, trunk), strict=False):
        record = part.read_run().model_copy(update={"parent": before})
        write_json_atomic(part.run_json, json.loads(record.model_dump_json(exclude_none=True)))
    for number, order in enumerate((parts[:2], parts[1::-1])):
        found = merged(order, tmp_path / f"out{number}").record
        assert found.parent == parent
        assert (found.images_before, found.flops_before) == (320, 7.0)


def unfinished(part: RunDir) -> None:
    write_status(part, Status(state="interrupted", images_seen=320, images_total=640, heartbeat=0.0))


def rewritten(part: RunDir, *settings: str) -> None:
    """The run with other settings in its record, which is read before its weights are."""
    other = random_run_folder(part.path.with_name("other"), *DENSE, *settings).read_run()
    write_json_atomic(part.run_json, json.loads(other.model_dump_json(exclude_none=True)))


REFUSED: dict[str, tuple[Callable[[RunDir], object], str]] = {
    "unfinished": (
        unfinished,
        "dense1 is not finished (interrupted after 320 images). "
        "Finish it with the `ecdit train` command that began it.",
    ),
    "no status": (
        lambda part: part.status_json.unlink(),
        "dense1 is not finished (it has no status). Finish it with the `ecdit train` command that began it.",
    ),
    "with experts": (
        lambda part: rewritten(part, "routing=expert_choice"),
        "dense1 has experts already: its routing.name is expert_choice. Merge runs with routing.name=dense.",
    ),
    "wider": (
        lambda part: rewritten(part, "model.width=128", "seed=1"),
        "dense1 cannot be merged: model.width is 64 in the first and 128 in the second. "
        "Merge runs that differ in seed and data.seed alone.",
    ),
    "other images": (
        lambda part: rewritten(part, "data.image_size=32", "seed=1"),
        "dense1 cannot be merged: data.image_size is 16 in the first and 32 in the second. "
        "Merge runs that differ in seed and data.seed alone.",
    ),
    "other rate": (
        lambda part: rewritten(part, "optim.learning_rate=0.01", "seed=1"),
        "dense1 cannot be merged: optim.learning_rate is 0.002 in the first and 0.01 in the second. "
        "Merge runs that differ in seed and data.seed alone.",
    ),
    "older weights": (
        lambda part: write_status(part, Status(state="done", images_seen=960, images_total=960, heartbeat=0.0)),
        "dense1 is finished after 960 images, but its newest intact checkpoint is of 640. "
        "Bring the last checkpoint back, or merge other runs.",
    ),
    "feed-forwards that no experts have": (
        lambda part: rewritten(part, "model.block=dit"),
        "dense1 has feed-forwards with gelu_tanh, which no experts have. Merge runs with model.ffn=gelu or swiglu.",
    ),
    "twin": (
        lambda part: rewritten(part, "seed=0"),
        "dense1 have the same settings and seeds, so that two experts would be equal. "
        "Name each run once, or train one with another seed.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_does_not_fit_is_one_line(name: str, parts: list[RunDir], tmp_path: Path) -> None:
    spoil, message = REFUSED[name]
    spoil(parts[1])
    with pytest.raises(RecordError) as refusal:
        merge_runs(parts[:2], tmp_path / "out", RANDOM, [], Silent())
    assert str(refusal.value).endswith(message)
    assert str(tmp_path / "dense1") in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["data.seed=5", "checkpoint.keep=7", "log.every_images=64"])
def test_seeds_and_what_changes_no_result_may_differ(setting: str, parts: list[RunDir], tmp_path: Path) -> None:
    other = random_run_folder(tmp_path / "other", *DENSE, "seed=1", setting)
    assert merged([parts[0], other], tmp_path / "out").config.routing.num_experts == 2


def test_one_run_an_existing_folder_and_options_that_do_not_fit_are_one_line(
    parts: list[RunDir], tmp_path: Path
) -> None:
    cases: list[tuple[list[RunDir], Path, MergeOptions, type[EcditError], str]] = [
        (parts[:1], tmp_path / "out", RANDOM, ConfigError, "only one is named. Name two runs or more."),
        (parts, tmp_path, RANDOM, OutputError, f"{tmp_path} exists already. Name a new folder."),
        (parts, parts[1].path / "sub" / "out", RANDOM, OutputError,
         f"is inside the run {parts[1].path}. Name a folder beside it."),
        (
            parts, tmp_path / "out", MergeOptions(4, "all", from_prompts=False), ConfigError,
            "--top-k 4 is more than the 3 runs, each of which becomes an expert.",
        ),
    ]  # fmt: skip
    for runs, out, options, kind, message in cases:
        with pytest.raises(kind) as refusal:
            merge_runs(runs, out, options, [], Silent())
        assert message in str(refusal.value)
        assert refusal.value.exit_code == 2


def test_captions_with_features_make_rows_too(latent_set: Path, tmp_path: Path) -> None:
    settings = ("routing=dense", "data.name=latents", f"data.path={latent_set}", "eval.images=4", "eval.batch_images=2")
    parts = [random_run_folder(tmp_path / f"dense{seed}", *settings, f"seed={seed}") for seed in range(2)]
    found = merged(parts, tmp_path / "out", MergeOptions(2, "alternate", from_prompts=True, num_prompts=3))
    assert [part.num_captions for part in found.record.parts or ()] == [3, 3]
    torch.testing.assert_close(found.model.blocks[1].ffn.router.weight_DE.norm(dim=0), torch.ones(2))
