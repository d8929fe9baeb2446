"""Optimizers that leave torch's compiler out of a process take the same steps as torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from experiments.training.optimizer import without_compiler
from tests.preloaded import server
from tests.training_runs import environment

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
    # Its import takes longer than the first steps of a small model. The process that is forked has imported less.
    words = ["train", "model=nano", "train.images=64", "train.batch_images=32", "eval.images=32", "wandb.mode=disabled"]
    words += ["--run-dir", str(tmp_path / "run"), "--no-progress"]
    forked = server().start(words, environment(), "tests.unit.training.compiler_probe:main")
    _, said = forked.communicate()
    assert forked.returncode == 0, said
