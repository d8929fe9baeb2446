"""Weights and checkpoints that somebody else wrote: one line, before anything large is made or waited for."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecdit_cli.app import run as ecdit
from experiments.errors import CheckpointError, EcditError, RecordError
from experiments.evaluation.exchange.exported_weights import export_weights
from experiments.evaluation.sampling.load_run import load_run
from experiments.inputs import sha256_of_files
from experiments.records.run_folder import RunDir
from experiments.settings_id import settings_id
from experiments.training.checkpoint_files import sha256_of_content
from tests.training_runs import random_run_folder

GIB = 2**30
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return random_run_folder(tmp_path_factory.mktemp("trained") / "run", "routing=expert_choice")


@pytest.fixture(scope="module")
def original(trained: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "weights"
    export_weights(trained, out, "ema", "fp32", GIB, pytest.fail)
    return out


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(original, tmp_path / "weights")))


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(trained.path, tmp_path / "run")))


def error_of(folder: RunDir) -> EcditError:
    """What loading says; one line."""
    with pytest.raises(EcditError) as caught:
        load_run(folder, "ema", lambda line: None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return caught.value


def describe(folder: RunDir, change: Change) -> None:
    """Change `model.json`."""
    about = json.loads(folder.exported.read_text())
    change(about)
    folder.exported.write_text(json.dumps(about))


def rewrite(folder: RunDir, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the exported tensors; the checksum fits them."""
    (path,) = folder.path.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    describe(folder, lambda about: about.update(sha256={path.name: sha256_of_files(path)}))


def rewrite_checkpoint(
    run: RunDir, tensors: Callable[[dict[str, torch.Tensor]], object] = lambda _: None, state: Change = lambda _: None
) -> None:
    """Change the EMA weights and `state.json` of the checkpoint; all checksums fit."""
    (folder,) = run.checkpoints.iterdir()
    path = folder / "ema.safetensors"
    found = load_file(path)
    tensors(found)
    save_file(found, path)
    content = json.loads((folder / "state.json").read_text())
    del content["sha256_of_this"]
    content["sha256"][path.name] = sha256_of_files(path)
    state(content)
    (folder / "state.json").write_text(json.dumps({**content, "sha256_of_this": sha256_of_content(content)}))


def give_the_id_of_its_settings(run: RunDir) -> None:
    """Make the config id of a run and of its checkpoint that of the changed settings: a stranger can do this too."""
    about = json.loads(run.run_json.read_text())
    about["config_id"] = settings_id(about["config"])
    run.run_json.write_text(json.dumps(about))
    rewrite_checkpoint(run, state=lambda content: content["state"].update(config_id=about["config_id"]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(value: float, exported: RunDir, run: RunDir) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["blocks.1.modulation_6D"].view(-1)[:3] = value

    rewrite(exported, spoil)
    rewrite_checkpoint(run, spoil)
    for folder in (exported, run):
        error = error_of(folder)
        assert isinstance(error, CheckpointError)
        assert f"The weights in {folder.path} are not finite: 3 of the " in error.message
        assert "numbers of blocks.1.modulation_6D are NaN or infinite" in error.message


def test_images_that_are_not_finite_are_one_line(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite weights may still make images that are not: here they overflow in the last layer."""
    rewrite_checkpoint(
        run, lambda tensors: [tensor.mul_(1e30) for name, tensor in tensors.items() if name == "head.weight"]
    )
    for command in (["sample", str(run.path), "--steps", "2"], ["evaluate", str(run.path), "--images", "4"]):
        assert ecdit(command) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        assert "images are not finite: they hold NaN or infinite pixels." in line


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("model", "widht", 64, "'model.widht' is not a setting. Did you mean 'model.width'"),
        ("modle", "width", 64, "'modle' is no setting. Did you mean 'model'?"),
        ("model", "width", "wide", "model.width='wide' is not an integer."),
        ("model", "width", True, "model.width=True is not an integer."),
        ("model", "width", None, "model.width=None is not an integer."),
        ("model", "width", -4, "model.width=-4 is out of range. It must be greater than 0"),
        ("model", "width", [64], "model.width=[64] is not an integer."),
        ("model", "name", "gigantic", "model.name='gigantic' is not a preset."),
        ("model", "num_heads", 3, "model.width=64 does not divide into model.num_heads=3 heads of even size."),
        ("routing", "name", "magic", "routing.name='magic' is not a router."),
        ("routing", "gating", "magic", "routing.gating='magic' is not 'softmax', 'sigmoid', 'identity' or None."),
        ("routing", "capacity_factor", "much", "routing.capacity_factor='much' is not a number or None."),
        ("routing", "num_experts", 5000, "leaves an expert without a slot"),
        ("train", "precision", "fp7", "train.precision='fp7' is not 'auto', 'fp32' or 'bf16'."),
        ("train", None, 7, "train=7 is not a group of settings."),
        ("model", None, [], "model=[] is not a group of settings."),
        ("data", "name", "\x1b[31m" + "x" * 9000, "data.name='\\x1b[31mxx"),
        ("data", "name", ["shapes"], "data.name=['shapes'] is not 'shapes', 'latents', 'pixels', 'imagenet' or 'sd3'."),
        ("data", "name", "latents", "data.vocab_size=64 does not fit data.name=latents."),
        ("data", None, {"name": "latents"}, "data.text_width=None does not fit data.name=latents"),
        ("data", None, {"name": "latents", "vocab_size": None, "text_width": 8}, "data.pooled_width=None does not fit"),
        ("data", None, 7, "data=7 is not a group of settings."),
    ],
)
@pytest.mark.parametrize("where", ["exported", "run"])
def test_settings_that_this_version_does_not_know_are_one_line_as_any_setting(
    section: str, name: str | None, value: object, message: str, where: str, request: pytest.FixtureRequest
) -> None:
    folder: RunDir = request.getfixturevalue(where)
    file = folder.exported if where == "exported" else folder.run_json

    def change(about: dict[str, Any]) -> None:
        config = about["record"]["config"] if where == "exported" else about["config"]
        if name is None:
            config[section] = value
        else:
            config.setdefault(section, {})[name] = value

    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    if where == "run":
        give_the_id_of_its_settings(folder)
    error = error_of(folder)
    assert isinstance(error, RecordError)
    assert str(error).startswith(f"{file}: ")
    assert message in str(error).replace("\\\\", "\\")
    assert "\x1b" not in str(error)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"width": 10**6, "num_heads": 2}, "exported"),
        ({"num_layers": 10**7}, "exported"),
        ({"num_layers": 10**7}, "run"),
        ({"text_width": 64 * 10**4, "text_layers": 10**3}, "run"),
    ],
)
def test_a_model_that_the_weights_do_not_fill_is_refused_before_it_is_built(
    changes: dict[str, int], where: str, request: pytest.FixtureRequest
) -> None:
    """Half a GiB more than now is not enough for any of these models, and all that is needed to refuse them."""
    folder: RunDir = request.getfixturevalue(where)
    file = folder.exported if where == "exported" else folder.run_json
    about = json.loads(file.read_text())
    (about["record"]["config"] if where == "exported" else about["config"])["model"].update(changes)
    file.write_text(json.dumps(about))
    if where == "run":
        give_the_id_of_its_settings(folder)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIB // 2, before[1]))
    try:
        error = error_of(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "are not those of its model" in error.message or "must be less than or equal to" in error.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(precision="fp8"), "precision: Input should be 'fp32' or 'bf16'"),
        (lambda about: about.update(weights=3), "weights: Input should be 'raw' or 'ema'"),
        (lambda about: about.update(images_seen="many"), "images_seen: Input should be a valid integer"),
        (lambda about: about.update(images_seen=float("inf")), "images_seen: "),
        (lambda about: about.update(images_seen=10**30), "images_seen: Input should be less than"),
        (lambda about: about.update(images_seen=-1), "images_seen: Input should be greater than or equal to 0"),
        (lambda about: about.update(sha256=[1]), "sha256: Input should be a valid dictionary"),
        (lambda about: about.update(sha256={"model.safetensors": None}), "sha256: model.safetensors: Input should be"),
        (lambda about: about.update(record=None), "record: Input should be"),
        (lambda about: about["record"].update(config="all"), "record: config: Input should be a valid dictionary"),
        (lambda about: about.pop("weights"), "weights: Field required"),
        (lambda about: about.update({"\x1b[2J": 1}), "\\x1b[2J: Extra inputs are not permitted"),
    ],
)
def test_a_description_of_wrong_types_is_one_line(change: Change, message: str, exported: RunDir) -> None:
    describe(exported, change)
    error = error_of(exported)
    assert f"{exported.exported} is damaged: " in error.message
    assert message in error.message


def deep(path: Path) -> None:
    path.write_text('{"record":' * 200_000)


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3 * GIB)  # sparse: it takes no space, and cannot be read whole


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (deep, "is damaged: it is nested too deeply"),
        (huge, "cannot be read: it is larger than"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "cannot be read: it is a FIFO"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: "),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "cannot be read: it is a device"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "cannot be read: "),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is damaged: it is not JSON"),
        (
            lambda path: path.write_text('{"weights": "raw", "weights": "ema"}'),
            "is damaged: it is not JSON (the key 'we",
        ),
    ],
)
def test_a_description_that_is_no_description_is_one_line(
    replace: Callable[[Path], object], message: str, exported: RunDir
) -> None:
    replace(exported.exported)
    error = error_of(exported)
    assert isinstance(error, RecordError)
    assert f"{exported.exported} {message}" in error.message


def garbage_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "replace",
    [
        garbage_header,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{" * 5000),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    ],
)
def test_a_file_that_holds_no_tensors_is_one_line(replace: Callable[[Path], object], exported: RunDir) -> None:
    (path,) = exported.path.glob("*.safetensors")
    replace(path)
    if path.is_file():
        describe(exported, lambda about: about.update(sha256={path.name: sha256_of_files(path)}))
    assert f"{path} cannot be read" in error_of(exported).message


def transpose(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2 and len(set(tensor.shape)) == 2)
    tensors[name] = tensors[name].t().contiguous()


def retype(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({"blocks.1.modulation_6D": tensors["blocks.1.modulation_6D"].to(dtype)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (transpose, "are not those of its model"),
        (lambda tensors: tensors.clear(), "are not those of its model"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "are not those of its model"),
        (retype(torch.int64), "blocks.1.modulation_6D as I64; model.json says fp32"),
        (retype(torch.float16), "blocks.1.modulation_6D as F16; model.json says fp32"),
    ],
)
def test_exported_tensors_of_other_shapes_and_types_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, exported: RunDir
) -> None:
    rewrite(exported, change)
    assert message in error_of(exported).message


@pytest.mark.parametrize(
    ("tensors", "state"),
    [
        (transpose, lambda _: None),
        (retype(torch.int64), lambda _: None),
        (lambda tensors: tensors.clear(), lambda _: None),
        (lambda tensors: tensors.update({"blocks.1.modulation_6D": torch.zeros(3)}), lambda _: None),
        (lambda _: None, lambda content: content.update(shapes={})),
        (lambda _: None, lambda content: content.update(shapes=[1, 2])),
        (lambda _: None, lambda content: content.update(stretches=[])),
        (lambda _: None, lambda content: content.update(stretches=[{}])),
        (lambda _: None, lambda content: content.update(stretches="all")),
        (lambda _: None, lambda content: content["stretches"][0].update({"blocks.1.modulation_6D": [3]})),
        (lambda _: None, lambda content: content["stretches"][0].update({"blocks.1.modulation_6D": [5, 2]})),
        (lambda _: None, lambda content: content["shapes"].update({"blocks.1.modulation_6D": [10**9, 10**9, 10**9]})),
        (lambda _: None, lambda content: content["shapes"].update({"blocks.1.modulation_6D": [-1]})),
        (lambda _: None, lambda content: content.update(sha256={})),
        (lambda _: None, lambda content: content.update(sha256=None)),
        (lambda _: None, lambda content: content["state"].update(images_seen="many")),
        (lambda _: None, lambda content: content["state"].pop("images_seen")),
        (lambda _: None, lambda content: content["state"].update(config_id=[])),
        (lambda _: None, lambda content: content.update(state=None)),
        (lambda _: None, lambda content: content.pop("format_version")),
        (lambda _: None, lambda content: content.update(format_version=[])),
    ],
)
def test_a_checkpoint_of_wrong_types_or_shapes_is_one_line(
    tensors: Callable[[dict[str, torch.Tensor]], object], state: Change, run: RunDir
) -> None:
    rewrite_checkpoint(run, tensors, state)
    assert isinstance(error_of(run), CheckpointError)


def test_an_earlier_checkpoint_is_taken_where_the_newest_is_not_what_it_says(run: RunDir) -> None:
    (newest,) = run.checkpoints.iterdir()
    rewrite_checkpoint(run, state=lambda content: content["state"].update(images_seen=320))
    shutil.copytree(newest, run.path / "kept")
    rewrite_checkpoint(run, lambda tensors: tensors.clear(), lambda content: content["state"].update(images_seen=640))
    shutil.move(run.path / "kept", newest.with_name("images_000000000320"))
    said: list[str] = []
    assert load_run(run, "ema", said.append).images_seen == 320
    assert len(said) == 1
    assert "ema.safetensors is damaged" in said[0]
    assert "is not in it" in said[0]
