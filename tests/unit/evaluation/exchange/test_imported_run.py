"""Public weights become runs that compute what the public networks do, and bad files are one line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ecdit_cli.app import run
from experiments.errors import EcditError
from experiments.evaluation.exchange.imported_run import import_weights
from experiments.evaluation.sampling.generate import SamplerSettings, integrate
from experiments.evaluation.sampling.load_run import LoadedRun, load_run
from experiments.flow.objective_contract import objective_of
from experiments.flow.samplers import Guidance
from experiments.records.run_folder import RunDir
from tests.training_runs import random_run_folder
from tests.unit.evaluation.exchange.public_networks import (
    CHANNELS,
    CLASSES,
    EXPERTS,
    HEADS,
    SIDE,
    State,
    public_output,
    public_state,
)

CASES = {"dit": ("dit", 0, False), "dit-moe": ("dit-moe", EXPERTS, False), "flash": ("dit-moe", EXPERTS, True)}


def imported(content: Any, folder: Path, layout: str = "dit-moe", **options: Any) -> LoadedRun:
    """The run of a file with `content`."""
    file, out = folder / "public.pt", folder / "run"
    torch.save(content, file)
    given = {"objective": "rectified_flow", "weights": None, "num_heads": HEADS, "top_k": 2, "command": []} | options
    import_weights(layout, file, out, **given)
    return load_run(RunDir(out), "ema", print)


def refusal(content: Any, folder: Path, layout: str = "dit-moe", **options: Any) -> str:
    """The one line that a mistake is, after which there is no run."""
    with pytest.raises(EcditError) as error:
        imported(content, folder, layout, **options)
    assert error.value.exit_code == 2
    assert len(str(error.value).splitlines()) == 1
    assert os.listdir(folder) == ["public.pt"]
    return str(error.value)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_public_network(case: str, tmp_path: Path) -> None:
    layout, num_experts, flash = CASES[case]
    state = public_state(num_experts, flash)
    loaded = imported(state, tmp_path, layout)
    x = torch.randn(4, CHANNELS, SIDE, SIDE)
    t, y = torch.tensor([0.0, 0.31, 0.77, 1.0]), torch.tensor([0, 3, CLASSES - 1, CLASSES])
    with torch.no_grad():
        velocity = loaded.model.to_image(loaded.model(x, t, y).velocity_BKP)
    expected = public_output(state, x, t, y)[:, :CHANNELS]
    assert expected.std() > 0.3
    torch.testing.assert_close(velocity, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_guided_samples_are_those_of_the_public_sampler(case: str, tmp_path: Path) -> None:
    """DiT-MoE's sampler: z - dt (u + scale (c - u)) from t = 1 to 0, on all four channels."""
    layout, num_experts, flash = CASES[case]
    state = public_state(num_experts, flash)
    loaded = imported(state, tmp_path, layout)
    z, y = torch.randn(2, CHANNELS, SIDE, SIDE), torch.tensor([3, 7])
    ours = integrate(loaded.model, y, loaded.model.null_of(y), z, SamplerSettings(4, Guidance(1.5)))
    for step in range(4, 0, -1):
        t = torch.full((2,), step / 4)
        c, u = (public_output(state, z, t, labels)[:, :CHANNELS] for labels in (y, torch.full((2,), CLASSES)))
        z = z - (u + 1.5 * (c - u)) / 4
    torch.testing.assert_close(ours, z, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_weights_of_ddpm_give_the_public_noise_and_variance_and_guided_steps(case: str, tmp_path: Path) -> None:
    """DDIM's steps on DDPM's scale, alpha x_0 + sigma e, with guidance of all channels."""
    layout, num_experts, flash = CASES[case]
    state = public_state(num_experts, flash)
    loaded = imported(state, tmp_path, layout, objective="ddpm")
    objective = objective_of(loaded.config.flow)
    torch.manual_seed(0)
    x, n, y = torch.randn(2, CHANNELS, SIDE, SIDE), torch.tensor([0, 613]), torch.tensor([3, CLASSES])
    with torch.no_grad():
        both = loaded.model.to_image(loaded.model(x, n / 1000, y).velocity_BKP)
    torch.testing.assert_close(both, public_output(state, x, n.float(), y), rtol=0, atol=1e-5)
    labels = torch.tensor([3, 7])
    settings = SamplerSettings(3, Guidance(1.5), sampler="ddim")
    ours = integrate(loaded.model, labels, loaded.model.null_of(labels), x, settings)
    level = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)  # alpha^2 at each step
    steps = [999, 500, 0]
    x = x * (1 - level[999]).sqrt()  # the first noise is scaled as its step says, 0.99998 times that of the public code
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        t = torch.full((2,), float(step))
        c, u = (public_output(state, x, t, each)[:, :CHANNELS] for each in (labels, torch.full((2,), CLASSES)))
        noise = u + 1.5 * (c - u)
        now, then = level[step], level[following] if following is not None else torch.tensor(1.0)
        image = (x - (1 - now).sqrt() * noise) / now.sqrt()
        x = (then.sqrt() * image + (1 - then).sqrt() * noise).float()
    # The last steps divide by alpha = 0.006, which magnifies rounding.
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4 * float(x.abs().max()))
    assert objective.flow.learned_sigma


@pytest.mark.parametrize(("weights", "taken"), [(None, 1), ("ema", 1), ("raw", 2)], ids=["the average", "ema", "raw"])
def test_a_checkpoint_of_the_training_script_has_both_weights(weights: str | None, taken: int, tmp_path: Path) -> None:
    states = {seed: public_state(EXPERTS, seed=seed) for seed in (1, 2)}
    content = {"ema": states[1], "model": states[2], "opt": {"state": {}}, "args": argparse.Namespace(image_size=256)}
    loaded = imported(content, tmp_path, weights=weights)
    bias = dict(loaded.model.named_parameters())["embed.bias"]
    assert torch.equal(bias, states[taken]["x_embedder.proj.bias"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["imported"]["weights"] == ("raw" if taken == 2 else "ema")


def test_the_module_of_deepspeed_and_names_with_a_prefix_are_read(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor.half() for name, tensor in public_state(EXPERTS, flash=True).items()}
    loaded = imported({"module": state, "ds_version": "0.14"}, tmp_path, num_heads=None)
    assert loaded.config.model.num_heads == HEADS  # the norms of heads tell it
    assert loaded.config.model.qk_norm == "affine"


def test_the_run_says_what_it_is(tmp_path: Path) -> None:
    loaded = imported(public_state(EXPERTS), tmp_path)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["imported"]["layout"] == "dit-moe"
    assert len(record["imported"]["sha256"]) == 64
    assert record["imported"]["weights"] is None  # the file holds one set and does not say which
    config = loaded.config
    assert (config.model.block, config.routing.name, config.data.name) == ("dit", "shared_expert", "imagenet")
    assert (config.data.num_classes, config.data.image_size, config.model.time_scale) == (CLASSES, SIDE, 1.0)


class Executes:
    """Runs a command when it is unpickled without limits."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/executed-by-a-pickle",)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.moe.gate.weight"), "lacks the tensor blocks.1.moe.gate.weight."),
        (without("pos_embed"), "lacks the tensor pos_embed."),
        (
            lambda state: {**state, "z.weight": torch.zeros(1), "a\n.bias": torch.zeros(1)},
            r"has 2 tensors that a model of this layout does not have: a\n.bias, z.weight.",
        ),
        (
            lambda state: {**state, "blocks.0.attn.proj.bias": torch.zeros(5)},
            "has tensors of other shapes than a model of its sizes: blocks.0.attention.out.bias (5,) in place of (48,)",
        ),
        (
            lambda state: {**state, "blocks.0.moe.gate.weight": torch.zeros(3, 48)},
            "holds blocks.0.moe.gate.weight of shape (3, 48), and the others ask for (4, 48).",
        ),
        (lambda state: {**state, "pos_embed": state["pos_embed"] + 0.1}, "other positions than the sinusoidal ones"),
        (lambda state: {**state, "x_embedder.proj.bias": torch.full((48,), torch.nan)}, "embed.bias"),
        (lambda state: {**state, "x_embedder.proj.weight": torch.zeros(48)}, "is no patch embedding"),
        (lambda state: {**state, "x_embedder.proj.weight": torch.zeros(0, 4, 2, 2)}, "is no patch embedding"),
        (lambda state: {**state, "pos_embed": torch.zeros(48)}, "holds pos_embed of shape (48,), which no model of"),
        (
            lambda state: {**state, "blocks.0.moe.experts.0.gate_proj.weight": torch.zeros(0, 48)},
            "holds blocks.0.moe.experts.0.gate_proj.weight of shape (0, 48), which no model of this layout has.",
        ),
        (
            lambda state: {**state, "blocks.0.attn.qkv.weight": torch.tensor(1.0)},
            "holds blocks.0.attn.qkv.weight of shape (), and the others ask for (144, 48).",
        ),
        (
            lambda state: {**state, "y_embedder.embedding_table.weight": torch.zeros(1, 48)},
            "public.pt: data.num_classes=0 is out of range. It must be greater than 0.",
        ),
        (lambda state: [1, 2], "holds no tensors by name."),
        (lambda state: {"ema": 3}, "holds no tensors by name."),
        (lambda state: {"opt": Executes()}, "which could execute code: it is not read."),
    ],
)
def test_a_file_that_is_something_else_is_one_line(
    change: Callable[[State], Any], message: str, tmp_path: Path
) -> None:
    assert message in refusal(change(public_state(EXPERTS)), tmp_path)
    assert not os.path.exists("/tmp/executed-by-a-pickle")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"a": 1}), b"PK\x03\x04 cut"])
def test_a_file_that_torch_has_not_written_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "public.pt"
    file.write_bytes(content)
    with pytest.raises(EcditError) as error:
        import_weights("dit", file, tmp_path / "run", "rectified_flow", None, HEADS, 2, [])
    assert str(file) in str(error.value)
    assert error.value.exit_code == 2


def test_options_that_do_not_fit_the_file_are_one_line(tmp_path: Path) -> None:
    state = public_state(EXPERTS)
    assert "has experts, and is not of dit. Use dit-moe." in refusal(state, tmp_path, "dit")
    assert "has no experts, and is not of dit-moe. Use dit." in refusal(public_state(), tmp_path, "dit-moe")
    assert "does not say how many heads attention has" in refusal(state, tmp_path, num_heads=None)
    normed = refusal(public_state(EXPERTS, flash=True), tmp_path, num_heads=3)
    assert normed.endswith("whose norms of queries are those of 4 heads. Leave out --num-heads.")
    assert "holds one set of weights, without saying which." in refusal(state, tmp_path, weights="ema")
    assert "has no ema weights. Use --weights raw." in refusal({"model": state}, tmp_path, weights="ema")
    random_run_folder(tmp_path / "dense")
    with pytest.raises(EcditError, match=r"is inside the run .*dense\. Name a folder beside it\."):
        import_weights("dit", tmp_path / "public.pt", tmp_path / "dense" / "run", "ddpm", None, HEADS, 2, [])
    shutil.rmtree(tmp_path / "dense")
    assert "routing.top_k=9 is more than routing.num_experts=4." in refusal(state, tmp_path, top_k=9)


def test_commands_work_on_an_imported_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "public.pt", tmp_path / "run"
    torch.save(public_state(EXPERTS), file)
    words = ["import-weights", "dit-moe", str(file), str(out), "--objective", "rectified_flow", "--num-heads", "4"]
    assert run(words) == 0
    assert run(words) == 2
    assert "exists already. Name a new folder." in capsys.readouterr().err
    assert run(["evaluate", str(out), "--metrics", "routing", "--images", "6", "--steps", "2"]) == 0
    for figure in ("specialization", "expert-classes"):
        assert run(["plot", figure, str(out), "--out", str(tmp_path / "figures")]) == 0
        assert "class" in (tmp_path / "figures" / f"{figure}.csv").read_text()
    drawn = (tmp_path / "figures" / "expert-classes.svg").read_text()
    assert "What DiT-MoE found, on this run: 1. Experts say more about the position" in drawn
    capsys.readouterr()
    assert run(["report", str(out), "--out", str(tmp_path / "report")]) == 2
    assert "No run has a validation loss, which a report compares." in capsys.readouterr().err
    capsys.readouterr()
    assert run(["sample", str(out), "--class", "3"]) == 2
    assert "latents, which a VAE decodes. Name it with --vae" in capsys.readouterr().err
    assert run(["sample", str(out), "--class", "10"]) == 2
    assert "class 10 does not exist: the run has 10 classes." in capsys.readouterr().err
