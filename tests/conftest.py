"""Fixtures that several rooms share: the folder of a run, written through the schema models.

`write_run` states a loss curve as a function of images, so that whatever is computed from the records has an exact
expected value.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.config.budget import budget
from experiments.config.identity import config_id
from experiments.config.schema import RunConfig
from experiments.records.record_types import (
    BALANCE_LOSS,
    BalanceLoss,
    EvalRow,
    Record,
    RunRecord,
    State,
    Status,
    StepRow,
)
from experiments.records.run_folder import RunDir
from experiments.training.host_memory import M_MMAP_MAX, M_TRIM_THRESHOLD
from tests.real_images import (
    labelled_request,
    need_data_extra,
    save_encoders,
    small_request,
    write_class_folders,
    write_sidecars,
)
from tests.seconds import measured
from tests.wandb_server import Server, serving

# Two workers on two cores; what some tests compare to the last bit depends on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

os.environ["ECDIT_CACHE_DIR"] = "off"  # tests keep nothing in the home of whoever runs them
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the Hub's client is imported: no test asks the network

if not torch.accelerator.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels run on a processor, as Python

for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # under nohup or in a script's background, and tests send them
        signal.signal(number, usual)

M_MMAP_THRESHOLD = -3
"""A parameter of `mallopt`, from glibc's malloc.h."""
GLIBC_USUAL = {M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
"""The values that glibc has after a block of 32 MiB was freed."""

Curve = Callable[[int], float]
WriteRun = Callable[..., RunDir]
WEIGHTS = "raw"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: where files are shared out among workers, short ones fill the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Spares the garbage collector the imported modules, which stay.

    DeepSpeed collects whenever it builds or destroys an engine, which takes a quarter of a second with torch imported.
    """
    gc.collect()
    gc.freeze()


def use_usual_allocator() -> None:
    """Makes glibc return freed memory again, which commands turn off for the process that they run in.

    A worker runs thousands of tests in one process, and some of them a command. Its heap would otherwise only grow, in
    the end beyond the memory of the machine, and such a process cannot be forked any more.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in GLIBC_USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)  # what a command has reserved


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measures what the test takes, with its fixtures, and then undoes what a command has set for its process."""
    with measured(item.nodeid):
        result = yield
    use_usual_allocator()
    return result


@pytest.fixture
def write_run() -> WriteRun:
    """Writes one run folder: `write_run(path, settings, loss=lambda images: ..., final={"dropped_share": 0.1})`."""
    return write_run_folder


@pytest.fixture
def write_imported() -> Callable[..., RunDir]:
    """Writes the folder of a run of imported weights: `write_imported(path, settings, inference_seconds=0.1)`."""
    return write_imported_run


@pytest.fixture
def no_account(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without a key, and a W&B that starts afresh."""
    import wandb

    home = tmp_path_factory.mktemp("home")
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def wandb_server(no_account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A stand-in for W&B that wandb's own client finds, and a key for it."""
    import wandb

    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server
        wandb.teardown()


@pytest.fixture
def kernels_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where Triton's kernels run in this test: the accelerator, else the processor with Triton's interpreter."""
    from experiments import accelerated
    from experiments.evaluation.sampling.load_run import current_device

    pytest.importorskip("triton", reason="Triton is not installed: see `make kernel-test`")
    device = current_device()
    monkeypatch.setattr(accelerated, "DEVICES", {device.type})
    return device


def write_imported_run(
    path: Path,
    settings: Mapping[str, Mapping[str, Any] | int],
    sha256: str = 64 * "0",
    weights: str | None = None,
    **options: Any,
) -> RunDir:
    """Writes a run of weights that were imported, which took no steps and has no loss."""
    imported = {"layout": "dit", "objective": "ddpm", "sha256": sha256, "weights": weights}
    run = write_run_folder(path, settings, lambda images: 0.0, imported=imported, **options)
    status = json.loads(run.status_json.read_text())
    run.status_json.write_text(json.dumps(status | {"images_seen": 0}))
    run.steps.unlink()
    lines = run.evals.read_text().splitlines(keepends=True)
    run.evals.write_text("".join(line for line in lines if '"val_loss"' not in line))
    return run


def write_run_folder(
    path: Path,
    settings: Mapping[str, Mapping[str, Any] | int],
    loss: Curve,
    *,
    final: Mapping[str, float] | None = None,
    inference_seconds: float | None = None,
    images_per_second: float = 100.0,
    step_images: Sequence[int] | None = None,
    eval_images: Sequence[int] | None = None,
    training_loss: Curve | None = None,
    state: State = "done",
    reason: str | None = None,
    balance_loss: BalanceLoss | None = BALANCE_LOSS,
    **record_fields: Any,
) -> RunDir:
    """A run of `RunConfig(**settings)` whose validation loss is `loss(images_seen)`, as training would record it."""
    config = RunConfig.model_validate(settings)
    run, total = RunDir(path), config.train.images
    path.mkdir(parents=True)
    record = _run_record(config, path.name, record_fields)
    status = Status(
        state=state, images_seen=total, images_total=total, heartbeat=0.0, reason=reason, balance_loss=balance_loss
    )
    _write(run.run_json, [record])
    _write(run.status_json, [status])
    steps = step_images or range(config.log.every_images, total + 1, config.log.every_images)
    _write(run.steps, [_step(n, record, training_loss or loss, images_per_second) for n in steps])
    evals = eval_images or range(config.eval.every_images, total + 1, config.eval.every_images)
    rows = [_eval(n, "val_loss", loss(n), config) for n in evals]
    rows += [_eval(total, name, value, config) for name, value in (final or {}).items()]
    if inference_seconds is not None:
        rows.append(_eval(total, "inference_seconds_per_image", inference_seconds, config, {"steps": 24}))
    _write(run.evals, rows)
    return run


def _run_record(config: RunConfig, name: str, fields: Mapping[str, Any]) -> RunRecord:
    cost = budget(config)
    given: dict[str, Any] = {
        "config": json.loads(config.model_dump_json()),
        "config_id": config_id(config),
        "name": name,
        "created_at": "2026-01-01T00:00:00Z",
        "command": ["ecdit", "train"],
        "versions": {"python": "3.11"},
        "host": "machine",
        "device": "cpu: Xeon, 2 cores",
        "num_threads": 1,
        "precision": "fp32",
        "world": 1,
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "params_by_part": cost.params_by_part,
        "flops_per_image": cost.flops_per_image,
        "train_flops_per_image": cost.train_flops_per_image,
    }
    return RunRecord.model_validate(given | fields)


def _step(images: int, record: RunRecord, loss: Curve, images_per_second: float) -> StepRow:
    return StepRow(
        images_seen=images,
        flops=float(images * record.train_flops_per_image),
        seconds=images / images_per_second,
        loss=loss(images),
        learning_rate=1e-3,
        grad_norm=0.5,
        images_per_second=images_per_second,
    )


def _eval(images: int, metric: str, value: float, config: RunConfig, settings: dict[str, Any] | None = None) -> EvalRow:
    return EvalRow(
        images_seen=images,
        metric=metric,
        value=value,
        num_samples=config.eval.images,
        seed=config.data.seed,
        weights=WEIGHTS,
        settings=settings or {},
    )


def _write(path: Path, rows: Sequence[Record]) -> None:
    path.write_text("".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows))


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small VAE, T5 and CLIP, as their libraries save them; nothing that they do reaches the network."""
    need_data_extra()
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("datasets-cache"))
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="session")
def labelled_set(encoder_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 26 training and 4 validation images of three classes. Not to be changed."""
    from experiments.data.prepare.job import prepare

    folder = tmp_path_factory.mktemp("labelled")
    source = write_class_folders(folder / "source", 30)
    prepare(labelled_request(source, encoder_folders, validation_images=4), folder / "set")
    return folder / "set"


@pytest.fixture(scope="session")
def latent_set(encoder_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 36 training and 4 validation images, in shards of at most 8. Not to be changed."""
    from experiments.data.prepare.job import prepare

    folder = tmp_path_factory.mktemp("latents")
    source = write_sidecars(folder / "source", 40)
    prepare(small_request(source, encoder_folders, validation_images=4), folder / "set")
    return folder / "set"
