"""Optimizers that leave torch's compiler out of a process take the same steps as torch's own."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from experiments.training.optimizer import without_compiler

ADAMW, RMSPROP = torch.optim.AdamW, torch.optim.RMSprop


@pytest.mark.parametrize(("kind", "settings"), [(ADAMW, {}), (ADAMW, {"fused": True}), (RMSPROP, {})])
def test_the_steps_and_states_are_those_of_torch(kind, settings):
    models = [nn.Linear(5, 3)]
    models.append(copy.deepcopy(models[0]))
    optimizers = [
        made(model.parameters(), lr=0.1, weight_decay=0.01, **settings)
        for made, model in zip((kind, without_compiler(kind)), models, strict=True)
    ]
    for _ in range(3):
        x = torch.randn(4, 5)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(models[0].weight, models[1].weight)
    theirs, ours = (optimizer.state_dict() for optimizer in optimizers)
    assert theirs["param_groups"] == ours["param_groups"]
    torch.testing.assert_close(theirs["state"], ours["state"], rtol=0, atol=0)
    optimizers[1].load_state_dict(theirs)
    assert models[1].weight.requires_grad


def test_training_does_not_import_the_compiler(tmp_path):
    # Its import takes longer than the first steps of a small model.
    program = (
        "import sys; from ecdit_cli.app import run; code = run(sys.argv[1:]);"
        "sys.exit(code or ('torch._dynamo' in sys.modules and 'it was imported') or 0)"
    )
    words = ["train", "model=nano", "train.images=64", "train.batch_images=32", "eval.images=32", "wandb.mode=disabled"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--run-dir", str(tmp_path / "run"), "--no-progress"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
