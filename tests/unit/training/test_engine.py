"""Precision, world and who hears what libraries say."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS
from experiments.data.loader import TrainStream
from experiments.distributed.deepspeed_library import deepspeed, deepspeed_logger
from experiments.errors import ConfigError, StorageError
from experiments.training.engine import (
    build_engine,
    check_world,
    is_lost_process,
    process_group,
    resolve_precision,
)
from experiments.training.objective import forward_loss, micro_batches_of, to_device


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_used(precision: str) -> None:
    assert resolve_precision(load_config([f"train.precision={precision}"])) == precision


@pytest.mark.skipif(torch.accelerator.is_available(), reason="looks at the processor only without an accelerator")
@pytest.mark.parametrize(
    ("amx", "settings", "expected"),
    [
        (True, ["model=mini"], "bf16"),
        (True, ["model=micro"], "fp32"),
        (True, ["model=mini", "parallel.zero_stage=0"], "fp32"),
        (False, ["model=mini"], "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_is_made_for_it(
    amx: bool, settings: list[str], expected: str, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert resolve_precision(load_config(settings)) == expected


def test_auto_on_a_processor_that_says_nothing_of_amx_is_fp32(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"})
    assert resolve_precision(load_config(["model=mini"])) == "fp32"


def test_more_processes_than_launched_is_one_line_with_the_way_out() -> None:
    line = r"parallel.world=2 but 1 process\(es\) were launched\. Use: torchrun --standalone --nproc-per-node 2"
    with pytest.raises(ConfigError, match=line):
        check_world(load_config(["parallel.world=2"]))


def test_what_libraries_say_goes_to_the_log_and_only_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    with process_group(log):
        print("printed")
        deepspeed_logger.warning("logged")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("warned", stacklevel=1)
    print("after")
    deepspeed_logger.warning("loud again")
    text = log.read_text()
    assert [word in text for word in ("printed", "logged", "UserWarning: warned")] == [True] * 3
    captured = capsys.readouterr()
    assert captured.out == "after\n"
    assert "logged" not in captured.err + captured.out
    assert "Logging error" not in captured.err


def test_barriers_on_the_device_of_the_process_are_no_news(tmp_path: Path) -> None:
    """As PyTorch says on an accelerator, where ZeRO-3 is built."""
    log = tmp_path / "log.txt"
    with process_group(log):
        warnings.warn("barrier(): using the device under current context. You can specify ...", stacklevel=1)
        torch.distributed.barrier()
    assert "barrier" not in log.read_text()


def test_a_second_group_can_follow_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for _ in range(2):
        assert "LOCAL_RANK" not in os.environ
        with process_group(tmp_path / "log.txt"):
            assert torch.distributed.is_initialized()
        assert not torch.distributed.is_initialized()


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    with (
        pytest.raises(StorageError, match=r"cannot write .*log\.txt: is a directory\."),
        process_group(tmp_path / "log.txt"),
    ):
        pytest.fail("not reached")


def test_a_lost_process_is_told_from_a_bug() -> None:
    assert is_lost_process(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer"))
    assert is_lost_process(torch.distributed.DistBackendError("NCCL"))
    assert not is_lost_process(RuntimeError("shape '[2, 3]' is invalid"))


def test_importing_deepspeed_leaves_stdout_alone() -> None:
    assert all(getattr(handler, "stream", None) is not sys.stdout for handler in deepspeed_logger.handlers)


def test_the_optimizer_in_one_pass_takes_the_steps_of_the_reference(tmp_path: Path) -> None:
    after = {}
    for implementation in ("fast", "reference"):
        config = load_config([
            "model=nano", "model.width=32", "model.num_layers=2", "train.batch_images=8", "train.precision=fp32",
            f"train.implementation={implementation}",
        ])  # fmt: skip
        stream = TrainStream(config)
        with process_group(tmp_path / "log.txt"):
            engine = build_engine(config, "fp32")
            for number in range(3):
                batch = to_device(stream.batch(8 * number), engine.device)
                loss_B, _ = forward_loss(engine.deepspeed, batch, config)
                engine.deepspeed.backward(loss_B.mean())
                engine.deepspeed.step()
            after[implementation] = {name: each.detach().clone() for name, each in engine.model.named_parameters()}
    for name, ours in after["fast"].items():
        torch.testing.assert_close(ours, after["reference"][name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("router", [name for name, row in ROUTERS.items() if row.balance_loss_weight])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_balance_loss_pulls_as_much_with_accumulation(router: str, precision: str, one_process: None) -> None:
    """The gradient of one optimizer step, of the same routing groups in one forward pass and in four."""
    found = {}
    for passes in (1, 4):
        config = load_config(
            ["model=nano", "model.width=32", f"routing={router}", "routing.group_images=2", "train.batch_images=8",
             f"train.accumulation={passes}", f"train.precision={precision}"]
        )  # fmt: skip
        engine = build_engine(config, precision)
        for micro in micro_batches_of(TrainStream(config).batch(0), passes):
            loss_B, output = forward_loss(engine.deepspeed, micro, config)
            engine.deepspeed.backward(0 * loss_B.mean() + output.auxiliary_loss)
            if not engine.deepspeed.is_gradient_accumulation_boundary():
                engine.deepspeed.step()
        weights = [engine.model.blocks[layer].ffn.router.weight_DE for layer in config.sparse_layer_indices]
        found[passes] = torch.stack([deepspeed.utils.safe_get_full_grad(weight).float() for weight in weights])
        engine.deepspeed.destroy()
    tolerance = 1e-6 if precision == "fp32" else 0.02
    assert float(found[1].norm()) > 0
    assert float((found[4] - found[1]).norm()) <= tolerance * float(found[1].norm())


def test_a_run_that_began_in_bf16_is_not_continued_without_fp32_weights(one_process: None) -> None:
    """Its settings do not show the fault: `train.precision=auto` is bf16 where it began on an accelerator."""
    with pytest.raises(ConfigError, match=r"^parallel\.zero_stage=0 does not fit this run, which trains in bf16"):
        build_engine(load_config(["model=nano", "parallel.zero_stage=0"]), "bf16")
