"""Weights by themselves: the same images as the run makes, from files that cannot do anything."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.errors import CheckpointError, ConfigError, RecordError, StorageError
from experiments.evaluation.exchange.exported_weights import export_weights
from experiments.evaluation.sampling.load_run import load_run
from experiments.inputs import MAX_SETTINGS_BYTES, sha256_of_files
from experiments.records.exported_record import read_exported
from experiments.records.run_folder import RunDir
from experiments.records.writer import write_json_atomic
from experiments.training.checkpoint_files import sha256_of_content, shard_name
from experiments.training.router_states import router_state
from tests.training_runs import random_run_folder, stateful_routers

GIB = 2**30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(tmp_path_factory.mktemp("trained") / "run", "routing=expert_choice")


def export(run: RunDir, out: Path, weights: str = "ema", precision: str = "fp32", size: int = GIB) -> RunDir:
    export_weights(run, out, weights, precision, size, pytest.fail)  # type: ignore[arg-type]
    return RunDir(out)


def put_weight(checkpoint: Path, name: str, value: float) -> None:
    """Replaces the first number of a parameter in the moving average of a whole checkpoint."""
    (file,) = checkpoint.glob("ema*.safetensors")
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file)
    state = checkpoint / "state.json"
    content = json.loads(state.read_text())
    del content["sha256_of_this"]
    content["sha256"][file.name] = sha256_of_files(file)
    state.write_text(json.dumps({**content, "sha256_of_this": sha256_of_content(content)}))


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_model_from_exported_weights_is_that_of_the_run(weights: str, run: RunDir, tmp_path: Path) -> None:
    ours = load_run(export(run, tmp_path / "out", weights), weights, pytest.fail)  # type: ignore[arg-type]
    theirs = load_run(run, weights, pytest.fail)  # type: ignore[arg-type]
    assert (ours.config, ours.images_seen, ours.precision) == (theirs.config, theirs.images_seen, theirs.precision)
    expected = theirs.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.model.state_dict().items())


@pytest.mark.parametrize("router", stateful_routers())
def test_exported_weights_carry_what_the_router_has_learned(router: str, tmp_path: Path) -> None:
    run = random_run_folder(tmp_path / "run", f"routing={router}")
    ours = load_run(export(run, tmp_path / "out", "raw"), "raw", pytest.fail).model
    theirs = load_run(run, "raw", pytest.fail).model
    learned = router_state(theirs)
    assert any(any(numbers) for numbers in learned.values() if isinstance(numbers, list))
    assert router_state(ours) == learned
    time_B, caption = torch.tensor([0.3, 0.8]), torch.ones(2, 16, dtype=torch.int64)
    noisy_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = [model.float().cpu()(noisy_BCHW, time_B, caption).velocity_BKP for model in (ours, theirs)]
    assert torch.equal(*outputs)


def test_shards_are_no_larger_than_asked_and_named_by_an_index(run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run, out, size=400_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) > 2
    found = {name: file.name for file in files for name in load_file(file)}
    assert found == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(file).values())
    assert all(file.stat().st_size < 420_000 for file in files if len(load_file(file)) > 1)
    one = load_run(RunDir(out), "ema", pytest.fail).model.state_dict()
    other = load_run(run, "ema", pytest.fail).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_bf16_halves_the_files(run: RunDir, tmp_path: Path) -> None:
    sizes = []
    for precision in ("fp32", "bf16"):
        folder = export(run, tmp_path / precision, precision=precision)
        (file,) = folder.path.glob("*.safetensors")
        sizes.append(file.stat().st_size)
        assert load_run(folder, "ema", pytest.fail).precision == precision
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)


def test_the_other_weights_are_not_taken_for_those_that_are_there(run: RunDir, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out", "raw")
    with pytest.raises(ConfigError, match=r"holds raw weights\. Use --weights raw\."):
        load_run(folder, "ema", pytest.fail)


def test_a_folder_that_holds_something_is_left_alone(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(StorageError, match=r"is not empty\. Name a new folder\."):
        export(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class Payload:
    """What unpickling would execute."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.file,)


def test_weights_of_strangers_execute_nothing(run: RunDir, tmp_path: Path) -> None:
    folder, executed = export(run, tmp_path / "out"), tmp_path / "executed"
    (weights,) = folder.path.glob("*.safetensors")
    for content in (pickle.dumps(Payload(executed)), pickle.dumps({"w": Payload(executed)}, protocol=0)):
        weights.write_bytes(content)
        about = json.loads(folder.exported.read_text())
        about["sha256"][weights.name] = sha256_of_files(weights)  # a stranger's checksum fits his file
        folder.exported.write_text(json.dumps(about))
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_run(folder, "ema", pytest.fail)
    assert not executed.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_one_line(damage: str, run: RunDir, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out")
    (weights,) = folder.path.glob("*.safetensors")
    content = weights.read_bytes()
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"Export the run again\."):
        load_run(folder, "ema", pytest.fail)


def test_weights_of_another_model_are_refused(run: RunDir, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out")
    (weights,) = folder.path.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["blocks.0.ffn.w_in.weight"] = torch.zeros(3, 3)
    save_file(tensors, weights)
    about = json.loads(folder.exported.read_text())
    folder.exported.write_text(json.dumps({**about, "sha256": {weights.name: sha256_of_files(weights)}}))
    with pytest.raises(CheckpointError, match="are not those of its model"):
        load_run(folder, "ema", pytest.fail)


def test_the_description_of_many_shards_can_be_read(run: RunDir, tmp_path: Path) -> None:
    """The smallest --shard-gib makes as many of a large model: it was read with the limit of settings files."""
    folder = export(run, tmp_path / "out")
    about = json.loads(folder.exported.read_text())
    sums = {shard_name("model", shard, 200_000): "0" * 64 for shard in range(200_000)}
    write_json_atomic(folder.exported, {**about, "sha256": sums})
    assert folder.exported.stat().st_size > MAX_SETTINGS_BYTES
    assert read_exported(folder).sha256 == sums


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("value", "refused"), [
    (float("nan"), ("fp32", "bf16")), (float("inf"), ("fp32", "bf16")), (-float("inf"), ("fp32", "bf16")),
    (torch.finfo(torch.float32).max, ("bf16",)),
])  # fmt: skip
def test_weights_that_loading_would_refuse_are_not_exported(
    value: float, refused: tuple[str, ...], precision: str, tmp_path: Path
) -> None:
    """The largest number of fp32 is infinite in bf16."""
    run = random_run_folder(tmp_path / "run", "routing=expert_choice")
    (checkpoint,) = run.checkpoints.iterdir()
    name = "blocks.0.ffn.w_in.weight"
    put_weight(checkpoint, name, value)
    if precision not in refused:
        load_run(export(run, tmp_path / "out", precision=precision), "ema", pytest.fail)
        return
    message = rf"The weights in {checkpoint} \(ema\) are not finite: 1 of the [\d,]+ numbers of {name} are NaN or infin"
    with pytest.raises(CheckpointError, match=message):
        export(run, tmp_path / "out", precision=precision)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"record": {}, "sha256": {}}'])
def test_a_damaged_description_is_one_line(content: str, run: RunDir, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out")
    folder.exported.write_text(content)
    with pytest.raises(RecordError, match=r"model\.json is damaged"):
        load_run(folder, "ema", pytest.fail)


def test_files_outside_the_folder_are_never_read(run: RunDir, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "out")
    about = json.loads(folder.exported.read_text())
    (name,) = about["sha256"]
    (folder.path / name).rename(tmp_path / "elsewhere.safetensors")
    about["sha256"] = {"../elsewhere.safetensors": about["sha256"][name]}
    folder.exported.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_run(folder, "ema", pytest.fail)
