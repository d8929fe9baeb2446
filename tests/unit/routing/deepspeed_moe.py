"""Our layer beside the unmodified `deepspeed.moe.layer.MoE` with the same weights. A process of its own.

DeepSpeed's layer needs a process group, which is global to a process. Writes one JSON object to the file named first:
per case the largest difference of the output, of the auxiliary loss and of each gradient, and the tokens dropped.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.config.schema import RunConfig
from experiments.distributed.deepspeed_library import deepspeed
from experiments.layers.feed_forward import RoutedFeedForward, build_feed_forward

NUM_EXPERTS, WIDTH, HIDDEN = 4, 8, 16
FACTORS = {"tight": 0.75, "loose": 2.0}


def main(answer_file: str) -> None:
    """Compare every case and write the differences."""
    with tempfile.TemporaryDirectory() as folder:
        deepspeed.init_distributed(
            "gloo", auto_mpi_discovery=False, init_method=f"file://{folder}/group", rank=0, world_size=1
        )
        cases = itertools.product((1, 2, 3), FACTORS, (True, False))
        answers = {f"{k} {limit} {training}": compare(k, FACTORS[limit], training) for k, limit, training in cases}
        answers |= {f"{k} none {training}": compare(k, None, training) for k in (1, 2, 3) for training in (True, False)}
        Path(answer_file).write_text(json.dumps(answers))


def compare(top_k: int, factor: float | None, training: bool) -> dict[str, float]:
    """Largest absolute differences, and how many choices DeepSpeed dropped."""
    torch.manual_seed(top_k)
    ours, theirs = our_layer(top_k, factor), their_layer(top_k, factor)
    copy_weights(ours, theirs)
    ours.train(training)
    theirs.train(training)
    x_BTD, direction_BTD = torch.randn(4, 16, WIDTH), torch.randn(4, 16, WIDTH)
    mine, other = our_answers(ours, x_BTD, direction_BTD), their_answers(theirs, x_BTD, direction_BTD)
    differences = {name: float((mine[name] - other[name]).abs().max()) for name in other}
    return differences | {"dropped": 64.0 * top_k - float(ours(x_BTD).tokens_per_expert_E.sum())}


def our_layer(top_k: int, factor: float | None) -> RoutedFeedForward:
    """A routed layer whose routing group is the whole batch, as DeepSpeed's is."""
    model = {"name": "nano", "width": WIDTH, "num_layers": 1, "sparse_layers": "all"}
    routing = {"name": "token_choice", "num_experts": NUM_EXPERTS, "top_k": top_k, "capacity_factor": factor}
    layer = build_feed_forward(
        RunConfig.model_validate({"model": model, "routing": routing | {"expert_factor": HIDDEN / WIDTH}}), 0
    )
    assert isinstance(layer, RoutedFeedForward)
    return layer


def their_layer(top_k: int, factor: float | None) -> nn.Module:
    """DeepSpeed's layer without its noise. It counts capacity per choice, we count slots per token."""
    expert = nn.Sequential(nn.Linear(WIDTH, HIDDEN, bias=False), nn.GELU(), nn.Linear(HIDDEN, WIDTH, bias=False))
    per_choice = (factor or 1.0) / top_k
    layer: nn.Module = deepspeed.moe.layer.MoE(
        WIDTH, expert, NUM_EXPERTS, k=top_k, capacity_factor=per_choice, eval_capacity_factor=per_choice,
        min_capacity=1, drop_tokens=factor is not None, use_rts=False, top2_2nd_expert_sampling=False,
    )  # fmt: skip
    layer.set_deepspeed_parallelism()
    return layer


def copy_weights(ours: RoutedFeedForward, theirs: nn.Module) -> None:
    """DeepSpeed deep-copies one expert: give each the weights of ours, and the gate a decided preference."""
    nn.init.normal_(ours.router.weight_DE)
    theirs.deepspeed_moe.gate.wg.weight.data = ours.router.weight_DE.detach().T.clone()
    for number, expert in enumerate(theirs.deepspeed_moe.experts.deepspeed_experts):
        expert[0].weight.data = ours.experts.w_in_EFD[number].detach().clone()
        expert[2].weight.data = ours.experts.w_out_EFD[number].detach().T.clone()


def our_answers(layer: RoutedFeedForward, x_BTD: Tensor, direction_BTD: Tensor) -> dict[str, Tensor]:
    """Output, unweighted loss and gradients, by DeepSpeed's layout."""
    x_BTD = x_BTD.clone().requires_grad_()
    output = layer(x_BTD)
    balance_loss = output.auxiliary_loss / 0.01
    (output.out_BTD * direction_BTD).sum().add(balance_loss).backward()
    answers = {"out": output.out_BTD, "loss": balance_loss, "x": x_BTD.grad, "router": layer.router.weight_DE.grad}
    weights = {"w_in": layer.experts.w_in_EFD.grad, "w_out": layer.experts.w_out_EFD.grad}
    return {name: answer.detach() for name, answer in (answers | weights).items() if answer is not None}


def their_answers(layer: nn.Module, x_BTD: Tensor, direction_BTD: Tensor) -> dict[str, Tensor]:
    """The same of DeepSpeed's layer; an expert that no token reached has no gradient."""
    x_BTD = x_BTD.clone().requires_grad_()
    out_BTD, balance_loss, _ = layer(x_BTD)
    (out_BTD * direction_BTD).sum().add(balance_loss).backward()
    assert x_BTD.grad is not None
    experts = layer.deepspeed_moe.experts.deepspeed_experts
    return {
        "out": out_BTD.detach(),
        "loss": balance_loss.detach(),
        "x": x_BTD.grad,
        "router": layer.deepspeed_moe.gate.wg.weight.grad.T,
        "w_in": torch.stack([expert[0].weight.grad for expert in experts]),
        "w_out": torch.stack([expert[2].weight.grad.T for expert in experts]),
    }


if __name__ == "__main__":
    main(sys.argv[1])
