"""`ecdit bench train --beside`: its mistakes, a network with the interface of a public one, and the public code itself.

    ECDIT_PUBLIC_DIT_MOE=DIR ECDIT_PUBLIC_MICRO_DIFFUSION=DIR ECDIT_PUBLIC_DIFFMOE=DIR pytest -s -rs FILE

The tests of the public code are skipped where no variable names a checkout. Their networks need timm, and that of
micro_diffusion easydict.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ecdit_cli.app import run
from experiments.benchmarks.public_networks import NETWORKS, PublicNetwork
from experiments.config.budget import budget
from experiments.config.overrides import load_config

SMALL = ("model.width=32", "model.num_layers=4", "model.num_heads=2", "routing.num_experts=4", "train.batch_images=2",
         "data.image_size=8", "train.precision=fp32")  # fmt: skip
MODELS = """
import torch
from torch import nn

print("libraries may print")


class DiT(nn.Module):
    def __init__(self, input_size, patch_size, in_channels, hidden_size, depth, num_heads, mlp_ratio, num_classes,
                 learn_sigma, num_experts, num_experts_per_tok):
        super().__init__()
        self.pixel = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.label = nn.Embedding(num_classes + 1, 1)

    def forward(self, x, t, y):
        return self.pixel(x) * self.label(y)[..., None, None] + t[:, None, None, None]
"""
FLOW = """
import torch
from torch import nn


class RectifiedFlow(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, cond):
        return (self.model(x, torch.rand(len(x)), cond) - x).square().mean(), {}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small network of our own with the public interface of DiT-MoE."""
    (tmp_path / "diffusion").mkdir()
    (tmp_path / "diffusion" / "__init__.py").touch()
    (tmp_path / "diffusion" / "rectified_flow.py").write_text(FLOW)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--beside", "dit-moe"], "--beside dit-moe needs a checkout of feizc/DiT-MoE: --peer-path DIR. Make"),
        (["train", "--peer-path", "x"], "--peer-path x needs the network whose checkout it is. Add --beside with"),
        (["train", "--beside", "dit-mo"], "--beside 'dit-mo' is no public network. Did you mean 'dit-moe'?"),
        (["train", "--beside", "diffmoe", "--peer-path", "x"], "--peer-path x is no folder. Name a checkout"),
        (["sample", "--beside", "diffmoe"], "--beside and --peer-path do not fit ecdit bench sample. Use them with"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(words, capsys).startswith(f"error: {said}")


def measured(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[Any], list[Any]]:
    """The rows of pairs and those of operators."""
    assert run(["bench", "train", *words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    return [row for row in rows if "group" not in row], [row for row in rows if "group" in row]


@pytest.mark.slow
def test_a_network_from_a_folder_trains_beside_ours(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--beside", "dit-moe", "--peer-path", str(checkout), *SMALL, "--steps", "3"]
    (pair,), shares = measured(words, capsys)
    ours = load_config(["model=dit-s-2", "routing=shared_expert", "data.name=imagenet", *SMALL, "model.num_kv_heads=2"])
    assert pair["params"] == budget(ours).params_total
    assert pair["peer_params"] == 4 * 4 + 1001
    assert pair["setting"].startswith("dit-s-2 4E, fp32, ")
    assert pair["ratio"] > 0
    assert pair["is_met"] == (pair["ratio"] >= pair["target"] == 1.5)
    assert pair["memory_ratio"] == pytest.approx(pair["peak_gib"] / pair["peer_peak_gib"])
    assert min(pair["first_step_seconds"], pair["peer_first_step_seconds"]) > 0
    assert pair["steps"] == 3
    for side in ("share", "peer_share"):
        assert sum(row[side] for row in shares) == pytest.approx(1)
    update = next(row for row in shares if row["group"] == "optimizer and average")
    assert min(update["seconds"], update["peer_seconds"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("class DiT(", "class Transformer(", "AttributeError: module 'models' has no attribute 'DiT'. "),
        ("num_experts_per_tok", "top_k", "TypeError: DiT.__init__() got an unexpected keyword argument "),
        ("return self.pixel(x)", "return self.pixel(x.T)", "RuntimeError: "),
    ],
    ids=["no such class", "no such argument", "a step that fails"],
)
def test_other_code_in_that_folder_is_one_line(
    before: str, after: str, said: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "models.py").write_text(MODELS.replace(before, after))
    line = refused(["train", "--beside", "dit-moe", "--peer-path", str(checkout), *SMALL], capsys)
    assert line.startswith(f"error: The code in {checkout} failed: {said}")
    assert line.endswith("ecdit was tested with feizc/DiT-MoE at bd34bbb, which can be checked out.\n")


def variable_of(network: PublicNetwork) -> str:
    return f"ECDIT_PUBLIC_{network.name.upper().replace('-', '_')}"


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_every_variant_of_the_public_code_trains(network: PublicNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.environ.get(variable_of(network))
    if not folder:
        pytest.skip(f"{variable_of(network)} names no checkout of {network.repository}")
    pytest.importorskip("timm", reason="the public networks need timm")
    words = ["--beside", network.name, "--peer-path", folder, *SMALL, "--steps", "1"]
    pairs, shares = measured(words, capsys)
    assert [pair["beside"] for pair in pairs] == [variant.label for variant in network.variants]
    for pair in pairs:
        print(f"\n{pair['beside']}: {pair['params']:,} parameters, {pair['peer_params']:,} of the public code")
        assert pair["peer_params"] == pytest.approx(pair["params"], rel=0.4)
        assert {row["beside"] for row in shares} >= {pair["beside"]}
