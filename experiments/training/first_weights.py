"""Gives a run its first weights from those of another one (`train.init_from`).

`config/initial_weights.py` decides how every parameter begins. Here each process makes the stretches of the parameters
that it holds, so that any layout begins with the same numbers and nobody holds the experts of another process. The
moving averages begin as the weights that were loaded. Checkpoints hold all of this afterwards, so that a run which
continues never reads its parent again.

Legend: D width, F hidden width, E experts.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from experiments.config.initial_weights import (
    beginnings,
    num_parts,
    output_factor,
    require_parent_fits,
    said_of_beginnings,
)
from experiments.config.parametrization import initial_factor
from experiments.config.router_sizes import router_tensors
from experiments.config.schema import RunConfig
from experiments.errors import CheckpointError, ConfigError
from experiments.layers.experts import expert_generator
from experiments.models.parts import count_by_part
from experiments.records.parent_weights import ParentWeights, find_parent
from experiments.records.record_types import FILE_OF_WEIGHTS, ParentRecord
from experiments.records.run_folder import RunDir
from experiments.training.checkpoint import Checkpoint, open_checkpoint
from experiments.training.engine import Engine
from experiments.training.exported_tensors import exported_tensors
from experiments.training.means import RunningMeans
from experiments.training.reporter import Reporter
from experiments.training.restore import newest_checkpoint, require_same_loss, restore, restore_optimizer
from experiments.training.router_states import KEY as ROUTER_STATE
from experiments.training.router_states import load_router_state, router_state

STATE_FOLLOWS = ("name", "num_experts", "gating", "input", "form")
"""The settings of routing that say what a score is; thresholds and biases are on the scale of scores."""
THRESHOLDS_FOLLOW = ("capacity_factor", "capacity_by_layer", "eval_decision")
"""The further settings that say which score of a batch is the threshold of an expert."""


class FirstWeights:
    """The weights of a parent, as the parameters of a run that begins from them."""

    def __init__(self, config: RunConfig) -> None:
        """Finds the parent and decides what is taken; no tensor is read.

        Raises `ConfigError` where it does not fit, or is not the one that the settings name by its fingerprint.
        """
        assert config.train.init_from is not None
        self.config = config
        self.parent: ParentWeights = find_parent(Path(config.train.init_from), config.train.init_weights)
        self.theirs = require_parent_fits(config, self.parent)
        if config.train.init_fingerprint != self.parent.fingerprint:
            raise ConfigError(
                f"train.init_from={config.train.init_from} holds other weights than those that "
                f"train.init_fingerprint={config.train.init_fingerprint} names.",
                "Bring those back, or leave out train.init_fingerprint and begin in another --run-dir.",
            )
        self.beginnings = beginnings(config, self.theirs)
        self.parts, self.factor = num_parts(config, self.theirs), output_factor(config, self.theirs)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.checkpoint: Checkpoint | None = None
        self._tensors: dict[str, Tensor] = {}

    def as_record(self) -> ParentRecord:
        """Returns what the run records of its parent, with the number of tensors by beginning and part."""
        return self.parent.as_record().model_copy(update={"tensors": count_by_part(self.beginnings)})

    def open(self) -> None:
        """Opens the files of the parent, after comparing them with their checksums.

        Raises `CheckpointError` where they are damaged, or hold other parameters than the settings of the parent give.
        """
        parent, carried = self.parent, self.config.train.init_optimizer == "carried"
        if parent.checkpoint is None:
            assert parent.exported is not None
            self._tensors = exported_tensors(parent.folder, parent.exported)
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        else:
            files = [FILE_OF_WEIGHTS[parent.weights], *(["optimizer"] if carried else [])]
            self.checkpoint = open_checkpoint(parent.checkpoint, parent.record.config_id, files)
            self.shapes = self.checkpoint.shapes
        missing = [name for name, how in self.beginnings.items() if how == "taken" and name not in self.shapes]
        if missing:
            raise CheckpointError(
                f"train.init_from={self.config.train.init_from} lacks {missing[0]}, which its settings give it.",
                "Name another run.",
            )

    def stretch(self, name: str, start: int, stop: int, fresh: Tensor, state: str = "") -> Tensor:
        """Returns the elements [start, stop) of a flattened parameter; `fresh` are those that the seed has drawn.

        With `state` they are those of one kind of optimizer state, and `fresh` is what new parameters begin with.
        """
        beginning = self.beginnings[name]
        if beginning == "taken":
            return self._read(name, start, stop, state)
        if beginning == "copied":
            return self._copied(name, start, stop, state)
        if beginning == "extended":
            return self._extended(name, start, stop, fresh, state)
        if name.endswith("ffn.shared.w_out.weight"):  # that of text tokens, `text_ffn`, too
            return torch.zeros_like(fresh)  # shared experts are beside the others, so that they begin with the output 0
        if name.endswith(".router.weight_DE") and self.parts > 1 and not state:
            return self._grouped(name)[start:stop]
        return fresh

    def _read(self, name: str, start: int, stop: int, state: str = "") -> Tensor:
        """Reads a stretch of a parameter of the parent, or of its optimizer state, in float32."""
        if self.checkpoint is None:
            return self._tensors[name].flatten()[start:stop].float()
        file = "optimizer" if state else FILE_OF_WEIGHTS[self.parent.weights]
        return self.checkpoint.read(file, name, start, stop, state)

    def _whole(self, name: str, state: str) -> Tensor:
        return self._read(name, 0, math.prod(self.shapes[name]), state).view(self.shapes[name])

    def _copied(self, name: str, start: int, stop: int, state: str) -> Tensor:
        """Returns a stretch of stacked experts, [E, ...]; only the experts that it touches are made."""
        block, _, part = name.partition(".ffn.")
        if part.startswith("unconditional."):
            return self._read(f"{block}.ffn.{part.removeprefix('unconditional.')}", start, stop, state)
        source = name
        if name not in self.shapes:
            source = f"{block}.ffn.{'w_in' if '.w_in_' in name else 'w_out'}.weight"
        size = math.prod(self.shapes[source]) // (self.shapes[name][0] if source == name else self.parts)
        first, last = start // size, -(-stop // size)
        if source == name:
            known = self.shapes[name][0]
            places = [expert % known * size for expert in range(first, last)]
            experts = [self._read(name, place, place + size, state) for place in places]
        else:
            matrix = self._whole(source, state)
            # A dense layer stores its second matrix as [D, F], and stacked experts store it as [F, D].
            rows_FD = matrix if ".w_in_" in name else matrix.T
            experts = [self._upcycled(name, rows_FD, expert, state) for expert in range(first, last)]
        return torch.cat(experts)[start - first * size : stop - first * size]

    def _upcycled(self, name: str, rows_FD: Tensor, expert: int, state: str) -> Tensor:
        """Returns one expert made of a dense feed-forward, flattened."""
        train = self.config.train
        mine_FD = rows_FD.chunk(self.parts)[expert % self.parts].contiguous()
        if train.init_experts == "drop":
            mine_FD = self._with_units_anew(name, mine_FD, expert, state)
        if state:
            return mine_FD.flatten()
        if train.init_experts == "noise":
            generator = expert_generator(f"{self.config.seed} {name}", expert, mine_FD.device)
            noise_FD = torch.randn(mine_FD.shape, generator=generator)
            mine_FD = mine_FD + train.init_noise * rows_FD.std() * noise_FD
        return (mine_FD * self.factor if ".w_out_" in name else mine_FD).flatten()

    def _with_units_anew(self, name: str, rows_FD: Tensor, expert: int, state: str) -> Tensor:
        """Returns a matrix in which a share of the hidden units is drawn anew (Drop-Upcycling, section 3.2).

        They are normal with the mean and the standard deviation of the weights that they replace. Both matrices of an
        expert draw the same units anew, as the paper says; its public code draws units for every matrix by itself.
        """
        train, block, cpu = self.config.train, name.partition(".ffn.")[0], torch.device("cpu")
        of_units = expert_generator(f"{self.config.seed} {block} units", expert, cpu)
        units = torch.randperm(len(rows_FD), generator=of_units)[: int(len(rows_FD) * train.init_drop)]
        if not len(units):
            return rows_FD
        old, new_FD = rows_FD[units], rows_FD.clone()
        if state:
            new_FD[units] = 0  # as any new parameter begins
        else:
            generator = expert_generator(f"{self.config.seed} {name}", expert, cpu)
            new_FD[units] = old.mean() + old.std() * torch.randn(old.shape, generator=generator)
        return new_FD

    def _extended(self, name: str, start: int, stop: int, fresh: Tensor, state: str) -> Tensor:
        """Returns a stretch of a router [D, E] whose first columns are the parent's; those of more experts are new."""
        rows, known = self.shapes[name]
        num_experts = self.config.routing.num_experts
        assert num_experts > known, f"{name} of {rows} rows"
        place = torch.arange(start, stop)
        column = place % num_experts
        is_known = column < known
        extended = fresh.clone()
        values = self._whole(name, state).flatten()
        extended[is_known] = values[(place // num_experts * known + column)[is_known]]
        return extended

    def _grouped(self, name: str) -> Tensor:
        """Returns a router [D, E], flattened, that gives all parts of one feed-forward the same score.

        A token then takes them together, as the top k experts (He et al. 2024, arXiv 2410.07524, virtual groups).
        """
        config, num_experts = self.config, self.config.routing.num_experts
        rows = router_tensors(config)["weight_DE"] // num_experts
        generator = expert_generator(f"{config.seed} {name}", 0, torch.device("cpu"))
        drawn = torch.randn(rows, num_experts // self.parts, generator=generator)
        std = rows**-0.5 * initial_factor(config, name)
        grouped: Tensor = (std * drawn).repeat_interleave(self.parts, dim=1)
        return grouped.flatten()


def begin_or_continue(
    config: RunConfig, engine: Engine, run_dir: RunDir, config_id: str, first: FirstWeights | None, restart: bool,
    reporter: Reporter,
) -> RunningMeans:  # fmt: skip
    """Fills `engine` from the newest checkpoint of the run, or else from its parent. Collective.

    Returns what the run has averaged so far. The checkpoint is closed at the end: while a file of it is open, removing
    it later frees no room on the disk, and fails on NFS. Raises `CheckpointError` where a file cannot be read.
    """
    checkpoint = None if restart else newest_checkpoint(engine, run_dir, config_id, reporter)
    if checkpoint is not None:
        require_same_loss(config, checkpoint)
        restore(engine, checkpoint)
        return RunningMeans.from_state(checkpoint.state)
    if config.train.init_from is not None:
        begin_from(first or FirstWeights(config), engine, reporter)
    return RunningMeans()


def begin_from(first: FirstWeights, engine: Engine, reporter: Reporter) -> None:
    """Gives `engine` the weights, and what else is asked for, of a parent. Collective.

    Raises `CheckpointError` where the files of the parent cannot be read.
    """
    first.open()
    partitions, config = engine.partitions, first.config

    def drawn(name: str) -> Tensor:
        piece = partitions.pieces[name]
        return partitions.flats[piece.flat].detach().narrow(0, piece.offset, piece.numel).cpu()

    partitions.fill(lambda name, start, stop: first.stretch(name, start, stop, drawn(name)), partitions.flats)
    partitions.refresh_module()
    for averages in engine.ema.averages:
        for average, weights in zip(averages, partitions.flats, strict=True):
            average.copy_(weights.detach())
    _take_router_state(first, engine)
    if config.train.init_optimizer == "carried":
        assert first.checkpoint is not None
        restore_optimizer(
            engine,
            first.checkpoint,
            lambda name, start, stop, state: first.stretch(name, start, stop, torch.zeros(stop - start), state),
        )
    if engine.rank == 0:
        _say(first, reporter)


def _take_router_state(first: FirstWeights, engine: Engine) -> None:
    """Takes the state of the routers over, where the parent has the same routers and its numbers mean the same."""
    checkpoint, exported = first.checkpoint, first.parent.exported
    stored = checkpoint.state.get(ROUTER_STATE) if checkpoint is not None else exported and exported.router_state
    ours, theirs = first.config.routing, first.theirs.routing
    keys = STATE_FOLLOWS if ours.top_k is not None else (*STATE_FOLLOWS, *THRESHOLDS_FOLLOW)
    same_router = all(getattr(ours, key) == getattr(theirs, key) for key in keys)
    if stored and same_router and stored.keys() == router_state(engine.model).keys():
        load_router_state(engine.model, {ROUTER_STATE: stored}, first.parent.folder.path)


def _say(first: FirstWeights, reporter: Reporter) -> None:
    """Says what was taken and what is new, in one line each; the log has the names of the tensors."""
    for line in said_of_beginnings(first.config, first.theirs, first.parent, count_by_part(first.beginnings)):
        reporter.warn(line)
    for name, beginning in first.beginnings.items():
        if beginning != "taken":
            print(f"first weights: {name} is {beginning}")  # into the log of the run
