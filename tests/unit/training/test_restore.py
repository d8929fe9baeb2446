"""Training goes on from a checkpoint as if nothing had happened, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.config.schema import RunConfig
from experiments.errors import CheckpointError
from experiments.records.run_folder import RunDir
from experiments.training.checkpoint import Checkpoint, load_newest
from experiments.training.engine import Engine
from experiments.training.restore import restore, snapshot
from experiments.training.router_states import KEY, load_router_state, router_state
from experiments.training.saver import Saver
from experiments.training.validation import Validator
from tests.training_runs import stateful_routers

Build = Callable[[RunConfig], Engine]
Tiny = Callable[..., RunConfig]
Advance = Callable[..., list[float]]

OPTIMIZERS = [
    "optim=adamw", "optim=adamw optim.weight_decay=0.1", "optim=rmsprop", "optim=rmsprop optim.momentum=0",
    "optim=adamw optim.weight_decay=0.1 optim.parametrization=mup model.base_width=8",
    "train.ema=power",
]  # fmt: skip


def saved(engine: Engine, folder: Path, images_seen: int) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    saver = Saver(RunDir(folder), "abc", engine.partitions.shapes, 1, engine.rank, engine.world)
    saver.begin({"images_seen": images_seen}, snapshot(engine))
    saver.finish()
    found = load_newest(RunDir(folder), "abc", say=pytest.fail)
    assert found is not None
    return found


STATEFUL = stateful_routers()
STAGES_OF_OPTIMIZERS = [
    *((optimizer, stage) for optimizer in OPTIMIZERS for stage in (0, 1, 3)),
    (OPTIMIZERS[0], 2),  # whose partitions are those of stage 1
]
STAGES_OF_ROUTERS = [*((router, 0) for router in STATEFUL), *((STATEFUL[0], stage) for stage in (1, 2, 3))]
"""A router's state is in its model and not in the partitions of weights: one router shows that no stage hides it."""


@pytest.mark.parametrize(("optimizer", "zero_stage"), STAGES_OF_OPTIMIZERS)
def test_losses_and_checkpoints_go_on_bit_for_bit(
    optimizer: str, zero_stage: int, build: Build, tiny: Tiny, advance: Advance, tmp_path: Path
) -> None:
    config = tiny(*optimizer.split(), f"parallel.zero_stage={zero_stage}", "optim.learning_rate=1e-2")
    straight = build(config)
    advance(straight, config, start=0, num_steps=2)
    checkpoint = saved(straight, tmp_path / "a", 16)
    expected = advance(straight, config, start=2, num_steps=3)
    resumed = build(tiny(*optimizer.split(), f"parallel.zero_stage={zero_stage}", "seed=5"))
    restore(resumed, checkpoint)
    assert advance(resumed, config, start=2, num_steps=3) == expected
    one, other = (saved(engine, tmp_path / name, 40) for name, engine in (("b", straight), ("c", resumed)))
    assert one.state == other.state
    for file in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (one.path / file).read_bytes() == (other.path / file).read_bytes(), file


@pytest.mark.parametrize(("router", "zero_stage"), STAGES_OF_ROUTERS)
def test_routers_with_a_state_go_on_bit_for_bit(
    router: str, zero_stage: int, build: Build, tiny: Tiny, advance: Advance, tmp_path: Path
) -> None:
    """Their state decides, so that losses after it was lost would be others."""
    config = tiny(f"routing={router}", f"parallel.zero_stage={zero_stage}", "optim.learning_rate=1e-2")
    straight = build(config)
    advance(straight, config, start=0, num_steps=2)
    checkpoint = saved(straight, tmp_path / "a", 16)
    learned = router_state(straight.model)
    assert checkpoint.state[KEY] == learned
    assert any(bool(torch.tensor(numbers).any()) for numbers in learned.values())
    expected = advance(straight, config, start=2, num_steps=2)
    resumed = build(tiny(f"routing={router}", f"parallel.zero_stage={zero_stage}", "seed=5"))
    assert router_state(resumed.model) != learned
    restore(resumed, checkpoint)
    assert router_state(resumed.model) == learned
    assert advance(resumed, config, start=2, num_steps=2) == expected
    assert router_state(resumed.model) == router_state(straight.model) != learned


def test_a_checkpoint_without_the_state_or_of_another_router_is_refused(
    build: Build, tiny: Tiny, advance: Advance, tmp_path: Path
) -> None:
    config = tiny("routing=loss_free")
    engine = build(config)
    advance(engine, config, start=0, num_steps=1)
    checkpoint = saved(engine, tmp_path, 8)
    name = "blocks.1.ffn.router.state.value_E"
    another = rf"holds the router state of another router: {name} is in one of them alone\. Use the routing settings"
    with pytest.raises(CheckpointError, match=another):
        load_router_state(engine.model, {}, checkpoint.path)
    with pytest.raises(CheckpointError, match=another):
        load_router_state(build(tiny()).model, checkpoint.state, checkpoint.path)
    with pytest.raises(CheckpointError, match=rf"holds no numbers in router_state\.{name}\. Use another checkpoint"):
        load_router_state(engine.model, {KEY: {name: ["a"]}}, checkpoint.path)
    with pytest.raises(CheckpointError, match=rf"holds no numbers in router_state\.{name}\. Use another checkpoint"):
        load_router_state(engine.model, {KEY: {name: [10**400] * 8}}, checkpoint.path)
    for numbers in ([0.0], [float("nan")] * 8):
        with pytest.raises(
            CheckpointError, match=r"value_E of shape \[\d\] or with infinite numbers, \[8\] is expected"
        ):
            load_router_state(engine.model, {KEY: {name: numbers}}, checkpoint.path)


@pytest.mark.parametrize("count", [-1, 1.5, True, [1]])
def test_a_number_of_updates_is_a_whole_number_from_0_on(count: object, build: Build, tiny: Tiny) -> None:
    """A count of -1 would make the next update divide by 0, so that every threshold would be NaN."""
    model = build(tiny("routing=expert_threshold")).model
    name = "blocks.1.ffn.router.state.num_updates"
    with pytest.raises(CheckpointError, match=rf"holds no count in router_state\.{name}\. Use another checkpoint"):
        load_router_state(model, {KEY: {**router_state(model), name: count}}, Path("checkpoint"))


@pytest.mark.parametrize("router", STATEFUL)
def test_recomputed_blocks_leave_the_same_state_and_validation_none(
    router: str, build: Build, tiny: Tiny, advance: Advance
) -> None:
    states = []
    for checkpointed in (False, True):
        config = tiny(f"routing={router}", f"parallel.activation_checkpointing={checkpointed}")
        engine = build(config)
        advance(engine, config, start=0, num_steps=2)
        states.append(router_state(engine.model))
        Validator(config).measure(engine, 16, "raw")
        assert router_state(engine.model) == states[-1]
    assert states[0] == states[1]


@pytest.mark.parametrize("router", STATEFUL)
def test_a_state_is_updated_once_per_step_whatever_the_micro_batches(
    router: str, build: Build, tiny: Tiny, advance: Advance, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(f"routing={router}", "train.accumulation=2")
    engine, updates = build(config), []
    state = engine.model.blocks[1].ffn.router.state
    plain = state.update
    monkeypatch.setattr(state, "update", lambda observed: (updates.append(observed), plain(observed)))
    advance(engine, config, start=0, num_steps=3)
    assert len(updates) == 3


def test_a_checkpoint_names_what_it_holds(build: Build, tiny: Tiny, advance: Advance, tmp_path: Path) -> None:
    config = tiny("routing=expert_choice")
    engine = build(config)
    advance(engine, config, start=0, num_steps=1)
    checkpoint = saved(engine, tmp_path, 8)
    names = [name for name, _ in engine.model.named_parameters()]
    tensors = {file: load_file(checkpoint.path / f"{file}.safetensors") for file in ("weights", "ema", "optimizer")}
    assert sorted(tensors["weights"]) == sorted(tensors["ema"]) == sorted(names)
    assert sorted(tensors["optimizer"]) == sorted(f"{n}/{state}" for n in names for state in ("exp_avg", "exp_avg_sq"))
    assert checkpoint.state["optimizer_counters"] == {"step": 1}
    assert checkpoint.state["optimizer_states"] == ["exp_avg", "exp_avg_sq"]
    assert tensors["weights"]["blocks.1.ffn.experts.w_in_EFD"].shape == (8, 128, 32)
    assert tensors["optimizer"]["blocks.1.ffn.experts.w_in_EFD/exp_avg"].shape == (8, 128, 32)
    assert all(tensor.dtype == torch.float32 for group in tensors.values() for tensor in group.values())


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_snapshot_is_of_its_moment(
    zero_stage: int, build: Build, tiny: Tiny, advance: Advance, tmp_path: Path
) -> None:
    """Training goes on while it is written."""
    config = tiny(f"parallel.zero_stage={zero_stage}")
    engine = build(config)
    advance(engine, config, start=0, num_steps=2)
    at_once = saved(engine, tmp_path / "a", 16)
    taken = snapshot(engine)
    advance(engine, config, start=2, num_steps=2)
    (tmp_path / "b").mkdir()
    saver = Saver(RunDir(tmp_path / "b"), "abc", engine.partitions.shapes, 1, 0, 1)
    saver.begin({"images_seen": 16}, taken)
    saver.finish()
    later = max(RunDir(tmp_path / "b").checkpoints.iterdir())
    for file in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (later / file).read_bytes() == (at_once.path / file).read_bytes(), file


def test_the_weights_of_a_checkpoint_are_those_of_the_model(
    build: Build, tiny: Tiny, advance: Advance, tmp_path: Path
) -> None:
    engine = build(tiny())
    advance(engine, tiny(), start=0, num_steps=2)
    weights = saved(engine, tmp_path, 16).full("weights")
    assert all(torch.equal(weights[name], p.cpu()) for name, p in engine.model.state_dict().items())


def test_a_checkpoint_names_the_averages_that_it_holds(
    build: Build, tiny: Tiny, advance: Advance, tmp_path: Path
) -> None:
    """The first has the keys that a single average has."""
    config = tiny("train.ema=power")
    engine = build(config)
    advance(engine, config, start=0, num_steps=2)
    checkpoint = saved(engine, tmp_path, 16)
    assert checkpoint.ema_widths == (0.05, 0.10)
    names = [name for name, _ in engine.model.named_parameters()]
    stored = load_file(checkpoint.path / "ema.safetensors")
    assert sorted(stored) == sorted([*names, *(f"{name}/0.1" for name in names)])
    assert all(torch.equal(checkpoint.full("ema")[name], stored[name]) for name in names)
    assert any(not torch.equal(stored[f"{name}/0.1"], stored[name]) for name in names)


@pytest.mark.parametrize("kept", ["halflife", "power"])
def test_other_averages_are_refused(kept: str, build: Build, tiny: Tiny, advance: Advance, tmp_path: Path) -> None:
    other = "power" if kept == "halflife" else "halflife"
    engine = build(tiny(f"train.ema={kept}"))
    advance(engine, tiny(), start=0, num_steps=1)
    checkpoint = saved(engine, tmp_path, 8)
    with pytest.raises(CheckpointError, match=r"holds averages of the widths \[.*\], and this training keeps \[.*\]\."):
        restore(build(tiny(f"train.ema={other}")), checkpoint)


def test_another_model_is_refused(build: Build, tiny: Tiny, advance: Advance, tmp_path: Path) -> None:
    engine = build(tiny())
    advance(engine, tiny(), start=0, num_steps=1)
    with pytest.raises(CheckpointError, match=r"holds other parameters than this model\. Use another --run-dir"):
        restore(build(tiny("model.num_layers=4")), saved(engine, tmp_path, 8))
