"""One side of `ecdit bench train --beside`, in a process of its own: our network or the public one, and its steps.

`beside_public.py` starts the two processes and asks them one after the other, a word on each line; the answers are
lines of JSON. Both processes import the same and set up memory alike. Both sides see the same batches, made before the
clock starts: random latents, with classes or features of captions. A step is the loss, its gradients, AdamW, and the
moving average of the weights where the public script keeps one. Our side is the real engine; the public one is
the network and the loss of the checkout, with torch's AdamW and autocast for bf16, as its script trains.

Legend: B images, K kept tokens.
"""

from __future__ import annotations

import copy
import json
import os
import pkgutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

import psutil
import torch
import torch._dynamo  # torch's optimizers import it when one is built, which would count for the side that lacks it
from torch import Tensor, nn

from experiments.benchmarks.operator_shares import profiled
from experiments.benchmarks.public_checkouts import Checkout
from experiments.benchmarks.public_networks import PUBLIC, PublicNetwork, find_network, matching_config
from experiments.benchmarks.whole_models import setting_of
from experiments.config.data_sets import captions_of
from experiments.config.schema import RunConfig
from experiments.data.loader import Batch
from experiments.errors import EcditError
from experiments.evaluation.sampling.load_run import current_device
from experiments.out_of_memory import out_of_memory
from experiments.records.record_types import Precision
from experiments.training.clock import synchronized_time
from experiments.training.description import peak_memory_gib
from experiments.training.engine import build_engine, process_group, resolve_precision
from experiments.training.host_memory import keep_freed_memory
from experiments.training.objective import forward_loss, to_device

NetworkBuilder = Callable[[RunConfig], tuple[nn.Module, Callable[[Batch], Tensor]]]
AVERAGE_DECAY = 0.9999
LEARNING_RATE = 1e-4


class TrainingSide(Protocol):
    """A network that trains: `gradients` of a batch, and the `update` of the weights."""

    num_params: int

    def gradients(self, batch: Batch) -> None:
        """Computes the loss of a batch and its gradients."""

    def update(self) -> None:
        """Updates the weights, and their moving average where there is one."""


class OwnSide:
    """Our network in the engine of training."""

    def __init__(self, config: RunConfig, precision: Precision, has_average: bool) -> None:
        self.config, self.engine, self.has_average = config, build_engine(config, precision), has_average
        if not has_average:
            self.engine.ema.averages.clear()  # the public script has none, so that ours may not cost memory
        self.engine.model.train()
        self.num_params = sum(parameter.numel() for parameter in self.engine.model.parameters())
        self.images_seen = 0

    def gradients(self, batch: Batch) -> None:
        """Computes them as the training loop does."""
        loss_B, output = forward_loss(self.engine.deepspeed, batch, self.config)
        self.engine.routers.observe(output.feed_forward)
        self.engine.deepspeed.backward(loss_B.mean() + output.auxiliary_loss)

    def update(self) -> None:
        """Updates them as the training loop does."""
        self.engine.deepspeed.step()
        self.images_seen += self.config.train.batch_images
        if self.has_average:
            self.engine.ema.update(self.images_seen, self.config.train.batch_images)


class PublicSide:
    """The network and the loss of a checkout, with the optimizer of its script."""

    def __init__(self, network: PublicNetwork, build: NetworkBuilder, config: RunConfig, precision: Precision) -> None:
        torch.manual_seed(config.seed)
        device = current_device()
        model, self.loss = build(config)
        self.model, self.clip_norm = model.to(device).train(), network.clip_norm
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.num_params = sum(parameter.numel() for parameter in self.trained)
        self.average = copy.deepcopy(self.model).requires_grad_(False) if network.has_average else None
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=0)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def gradients(self, batch: Batch) -> None:
        """Computes them with the public loss."""
        with self.autocast:
            loss = self.loss(batch)
        torch.autograd.backward(loss)

    def update(self) -> None:
        """Updates the weights and then their average, one after the other as in the public scripts."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()  # here as in DiffMoE; DiT-MoE holds gradients until after the next forward pass
        if self.average is not None:
            with torch.no_grad():
                for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    mean.mul_(AVERAGE_DECAY).add_(weight, alpha=1 - AVERAGE_DECAY)


def random_batch(config: RunConfig, number: int) -> Batch:
    """Returns the batch with this number: normal latents, and random classes or features of captions of full length."""
    data, images, generator = config.data, config.train.batch_images, torch.Generator().manual_seed(number)
    shape = (images, data.channels, data.image_size, data.image_size)
    pixels, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    caption = {}
    for name, (each, kind) in captions_of(config).tensors.items():
        if kind == "float16":
            caption[name] = torch.randn((images, *each), generator=generator).half()
        elif name == "label_B":
            caption[name] = torch.randint(data.num_classes or 0, (images,), generator=generator)
        else:
            caption[name] = torch.full((images, *each), data.caption_length)
    order_BK = torch.rand(images, config.num_tokens, generator=generator).argsort(dim=1)
    kept_BK = order_BK[:, : config.num_train_tokens].sort(dim=1).values
    return Batch(
        index_B=torch.arange(images), pixels_BCHW=pixels, noise_BCHW=noise,
        time_B=torch.rand(images, generator=generator), keep_BK=kept_BK if config.train.mask_ratio else None, **caption,
    )  # fmt: skip


class Served:
    """Answers the words of `beside_public.py` for one side."""

    def __init__(self, request: dict[str, Any]) -> None:
        """Imports the public code, for its side. Raises `EcditError` where that fails."""
        network = find_network(request["network"])
        variant = network.variants[request["variant"]]
        self.config = matching_config(network, variant, request["overrides"])
        keep_freed_memory(self.config)
        self.precision, self.device = resolve_precision(self.config), current_device()
        self.now = synchronized_time if request["clock"] == "wall" else time.process_time
        self.number = 0
        self.side: TrainingSide | None = None
        self.checkout: Checkout | None = None
        if request["side"] == PUBLIC:
            self.checkout = Checkout(network, Path(request["peer_path"]))
            build = partial(pkgutil.resolve_name(variant.build), self.checkout.modules(*variant.modules))
            self.make: Callable[[], TrainingSide] = lambda: PublicSide(network, build, self.config, self.precision)
        else:
            self.make = lambda: OwnSide(self.config, self.precision, network.has_average)
        on_host = self.device.type == "cpu"  # an accelerator has none of what the imports took
        self.resident = psutil.Process().memory_info().rss / 2**30 if on_host else 0.0

    def first(self) -> dict[str, Any]:
        """Builds the side and makes its first step. Raises `EcditError` where the public code fails."""
        started = synchronized_time()
        try:
            self.side = self.make()
            self.step()
        except Exception as error:
            told: EcditError | None = out_of_memory(error)
            if told is None and self.checkout is not None:
                told = self.checkout.changed(error)
            if told is None:
                raise
            raise told from error
        seconds = synchronized_time() - started
        setting = f"{setting_of(self.config, self.precision, self.device)}, batch {self.config.train.batch_images}"
        return {"seconds": seconds, "params": self.side.num_params, "setting": setting}

    def step(self) -> dict[str, Any]:
        """Makes a step on the next batch and returns its seconds."""
        assert self.side is not None
        batch = self._next_batch()
        started = self.now()
        self.side.gradients(batch)
        self.side.update()
        return {"seconds": self.now() - started}

    def peak(self) -> dict[str, Any]:
        """Returns the peak memory so far, beyond what the imports took."""
        return {"gib": peak_memory_gib() - self.resident}

    def shares(self) -> dict[str, Any]:
        """Returns the seconds of each group of operators in a step."""
        assert self.side is not None
        batch, side = self._next_batch(), self.side
        return {"seconds": profiled(lambda: side.gradients(batch), side.update)}

    def _next_batch(self) -> Batch:
        self.number += 1
        return to_device(random_batch(self.config, self.number), self.device)


def serve() -> None:
    """Answers on stdout what stdin asks for, until its end. What libraries print goes to stderr instead."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        try:
            with tempfile.TemporaryDirectory() as folder, process_group(Path(folder) / "log.txt"):
                _answer_all(json.loads(sys.argv[1]), answers)
        except EcditError as error:
            said = {"error": error.message, "hint": error.hint, "is_mistake": error.exit_code == 2}
            answers.write(json.dumps(said) + "\n")


def _answer_all(request: dict[str, Any], answers: TextIO) -> None:
    served = Served(request)
    words = {"first": served.first, "step": served.step, "peak": served.peak, "shares": served.shares}
    for line in sys.stdin:
        answers.write(json.dumps(words[line.strip()]()) + "\n")
