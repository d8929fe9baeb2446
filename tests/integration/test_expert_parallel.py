"""What a run computes does not depend on its layout, and a checkpoint goes on at any other.

All on gloo: two and four processes that really train, against one. The processes start once and train every layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS, trained_names
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError
from experiments.records.run_folder import RunDir
from experiments.training.engine import process_group
from tests.integration.layout_worker import SMALL, Outcome, Task, perform
from tests.training_runs import TIMEOUT_SECONDS, stateful_routers
from tests.two_nodes import start_together

pytestmark = [pytest.mark.slow, pytest.mark.multi]

OVER_ALL = "expert choice over all processes"


def independent(name: str) -> list[str] | None:
    """Settings with which the training of a router does not depend on the number of processes; None without any.

    Experts that change blocks are not spread over processes.
    """
    if ROUTERS[name].rule == "blocks":
        return None
    for words in ([], ["routing.group_images=all"], ["routing.contrastive_loss_weight=0"]):
        try:
            configs = [load_config([*SMALL, f"routing={name}", *words, f"parallel.world={world}"]) for world in (1, 2)]
        except ConfigError:
            continue
        evaluated_alike = [_with_one_decision(config) for config in configs]
        if config_id(evaluated_alike[0]) == config_id(evaluated_alike[1]):
            return [f"routing={name}", *words]
    return None


def _with_one_decision(config: RunConfig) -> RunConfig:
    """The config without thresholds outside training, which may follow the processes while training does not."""
    return config.model_copy(update={"routing": config.routing.model_copy(update={"eval_decision": "same"})})


TEXT_EXPERTS = ("model.block=mmdit", "routing.text_experts=4", "model.sparse_layers=all")
CASES = {
    **{name: settings for name in trained_names() if (settings := independent(name)) is not None},
    "no limit": ["routing=token_choice", "routing.capacity_factor=None", "routing.eval_capacity_factor=None"],
    OVER_ALL: ["routing=expert_choice", "routing.group_images=all"],
    "dit": ["routing=shared_expert", "model.block=dit"],
    "text experts": ["routing=expert_choice", *TEXT_EXPERTS],
    "text experts with a state": ["routing=loss_free", *TEXT_EXPERTS],
    "mup": [
        "routing=expert_choice", "routing.gate_norm=token", "routing.eval_decision=threshold",
        "optim.parametrization=mup", "model.base_width=16", "optim.weight_decay=0.1", "routing.expert_bias=True",
    ],
}  # fmt: skip
LAYOUTS = {
    2: [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)],
    4: [(1, 1), (2, 0), (2, 1), (2, 2), (4, 1)],
}
"""(expert-parallel size, ZeRO stage) by number of processes, for the case that is saved.

Two processes have every stage, without and with spread experts: 0 has whole weights and a norm of its own, 1 and 2 have
flat partitions, reduced after and during the backward pass, and 3 has a part of every parameter. Of four, (1, 1) cuts
the partitions more than once. With (2, 0) to (2, 2) two processes hold the same experts and two hold others, so that
neither group of DeepSpeed is one process or all of them. With (4, 1) every process holds one expert. Four processes go
on from two at (1, 2) and (4, 0), too.
"""
PLAIN: dict[int, list[tuple[int, int]]] = {2: [(1, 1), (2, 1)], 4: []}
"""Those of the other cases: how the optimizer cuts weights is nothing to a router, nor to experts how it chooses."""
SPREAD: dict[int, list[tuple[int, int]]] = {2: [(2, 1)], 4: []}
"""Those of routers that differ from a plain one by settings alone: that of `PLAIN` which has all its communication."""
OVER_FOUR = "expert_race"
"""The router of few layouts that four processes train too, as its tokens compete over all of them."""
FURTHER: dict[str, dict[int, list[tuple[int, int]]]] = {
    # Slots in uneven numbers: among some of the processes, and while gradients are reduced.
    "shared_expert": {2: [(1, 3), (2, 2)], 4: [(2, 1)]},
    # Blocks whose parts ZeRO-3 gathers, and two sets of experts in a layer.
    "dit": {2: [(1, 3)], 4: []},
    "text experts": {2: [(1, 3)], 4: [(2, 1)]},
    OVER_FOUR: {2: [], 4: [(4, 1)]},
}
"""Layouts beside those, for what a case has that no other has."""
FROM_TWO = {
    (1, 0): [(4, 0)],
    (1, 1): [(2, 1)],
    (1, 3): [(1, 2), (4, 0)],
    (2, 0): [(2, 1)],
    (2, 1): [(1, 2), (4, 0)],
}
"""At which layouts of four processes those of two go on. Each form in which two save their weights is read (stages 1
and 2 have one form), and those in which parameters or experts are cut by readers of whole and of cut ones."""
STEPS = 3
SAVED = "mup"
"""The case whose checkpoints go on at other layouts: experts with biases, two parameter groups beside
theirs, and a router with a state."""
UNINTERRUPTED = "uninterrupted"
DROPLESS = ("shared_expert", "no limit")
STATES = {name: [f"routing={name}", "routing.group_images=batch"] for name in stateful_routers()}
"""The routers with a state, which the tokens of both processes move."""

OF_ALL_TOKENS = [
    name for name in STATES if name in CASES and ROUTERS[name].settings.get("eval_decision") != "predictor"
]
"""Those whose state on any number of processes is that of one: the loads of all, or a threshold of all that compete."""


def layouts_of(case: str) -> dict[int, list[tuple[int, int]]]:
    if case == SAVED:
        return LAYOUTS
    row = ROUTERS.get(case)
    is_plain = case != OVER_ALL if row is None else (row.has_logits and row.gating == "softmax" and not row.settings)
    further = FURTHER.get(case, {})
    return {world: pairs + further.get(world, []) for world, pairs in (PLAIN if is_plain else SPREAD).items()}


def layout(expert_parallel: int, stage: int) -> list[str]:
    return [f"parallel.expert_parallel={expert_parallel}", f"parallel.zero_stage={stage}"]


def name_of(router: str, expert_parallel: int, stage: int) -> str:
    return f"{router} ep{expert_parallel} zero{stage}"


def launch(tasks: dict[str, Task], world: int, folder: Path) -> dict[str, Outcome]:
    """The tasks on `world` processes."""
    file = folder / f"world-{world}-{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps({name: asdict(task) for name, task in tasks.items()}))
    ended = start_together("tests.integration.layout_worker:main", str(file), world=world).ends(TIMEOUT_SECONDS)
    assert [code for code, _ in ended] == [0] * world, ended[0][1][-3000:]
    outcomes = json.loads(file.with_suffix(".done").read_text())
    return {name: Outcome(**outcome) for name, outcome in outcomes.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def one_process(folder: Path) -> Iterator[None]:
    with process_group(folder / "log.txt"):
        yield


@pytest.fixture(scope="module")
def straight(one_process: None, folder: Path) -> dict[str, Outcome]:
    """Every router on one process, and that which is saved after `STEPS` steps also without interruption."""
    saved = {SAVED: str(folder / f"saved {SAVED}")}
    outcomes = {case: perform(Task(words, STEPS, save=saved.get(case)), world=1) for case, words in CASES.items()}
    return outcomes | {UNINTERRUPTED: perform(Task(CASES[SAVED], 2 * STEPS), world=1)}


@pytest.fixture(scope="module")
def undecided(one_process: None) -> dict[str, Outcome]:
    """The routers without a limit on one process, when two experts take every token."""
    return {router: perform(Task(CASES[router], STEPS, undecided=True), world=1) for router in DROPLESS}


@pytest.fixture(scope="module")
def on_many(straight: dict[str, Outcome], folder: Path) -> dict[int, dict[str, Outcome]]:
    """By number of processes: every layout from its first step, and saved; then from what others saved."""
    outcomes: dict[int, dict[str, Outcome]] = {}
    for world, layouts in LAYOUTS.items():
        tasks = {}
        for router, overrides in CASES.items():
            for expert_parallel, stage in layouts_of(router)[world]:
                name = name_of(router, expert_parallel, stage)
                settings = [*overrides, *layout(expert_parallel, stage)]
                keep = str(folder / f"saved {name} world{world}") if router == SAVED else None
                tasks[name] = Task(settings, STEPS, save=keep)
        for router in DROPLESS:
            settings = [*CASES[router], *layout(world, 1)]
            tasks[f"undecided {router}"] = Task(settings, STEPS, undecided=True)
        if world == 2:
            tasks |= {f"state of {router}": Task(settings, STEPS) for router, settings in STATES.items()}
        ours = CASES[SAVED]
        for expert_parallel, stage in layouts:
            saved = str(folder / f"saved {SAVED}")
            settings = [*ours, *layout(expert_parallel, stage)]
            tasks[f"on from one process {expert_parallel} {stage}"] = Task(settings, STEPS, STEPS, load=saved)
        if world == 4:
            for (expert_parallel, stage), places in FROM_TWO.items():
                saved = str(folder / f"saved {name_of(SAVED, expert_parallel, stage)} world2")
                for here in places:
                    name = f"on from two {expert_parallel} {stage} at {here}"
                    tasks[name] = Task([*ours, *layout(*here)], STEPS, STEPS, load=saved)
        outcomes[world] = launch(tasks, world, folder)
    return outcomes


@pytest.mark.parametrize(
    ("router", "world", "expert_parallel", "stage"),
    [(case, world, *pair) for case in CASES for world, pairs in layouts_of(case).items() for pair in pairs],
)
def test_losses_are_those_of_one_process(
    router: str, world: int, expert_parallel: int, stage: int, straight: dict[str, Outcome], on_many
) -> None:
    outcome = on_many[world][name_of(router, expert_parallel, stage)]
    assert outcome.losses == pytest.approx(straight[router].losses[:STEPS], rel=1e-6)
    assert outcome.norms == pytest.approx(straight[router].norms[:STEPS], rel=1e-5)


@pytest.mark.parametrize("router", CASES)
def test_all_processes_together_compute_what_one_computes(router: str, straight: dict[str, Outcome], on_many) -> None:
    """Without a limit slots travel in uneven numbers, and none is padded."""
    for world, layouts in layouts_of(router).items():
        for expert_parallel, stage in layouts:
            outcome = on_many[world][name_of(router, expert_parallel, stage)]
            assert sum(outcome.flops) == sum(straight[router].flops), (world, expert_parallel, stage)


@pytest.mark.parametrize("router", STATES)
def test_all_processes_hold_the_same_state_of_a_router(router: str, on_many) -> None:
    states = on_many[2][f"state of {router}"].router_states
    assert states[0] == states[1]
    assert any(torch.tensor(numbers).any() for numbers in json.loads(states[0]).values())


@pytest.mark.parametrize("router", OF_ALL_TOKENS)
def test_where_all_tokens_count_a_state_is_that_of_one_process(router: str, straight, on_many) -> None:
    outcome = on_many[2][name_of(router, 2, 1)]
    one = json.loads(straight[router].router_states[0])
    for name, numbers in json.loads(outcome.router_states[0]).items():
        assert numbers == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.parametrize("world", LAYOUTS)
@pytest.mark.parametrize("router", DROPLESS)
def test_a_process_whose_experts_nobody_chose_takes_part(
    router: str, world: int, undecided: dict[str, Outcome], on_many
) -> None:
    outcome = on_many[world][f"undecided {router}"]
    assert outcome.losses == pytest.approx(undecided[router].losses, rel=1e-6)
    assert outcome.norms == pytest.approx(undecided[router].norms, rel=1e-5)
    assert sum(outcome.flops) == sum(undecided[router].flops)
    assert max(outcome.flops) > min(outcome.flops)


@pytest.mark.parametrize("world", LAYOUTS)
def test_a_checkpoint_of_one_process_goes_on_at_every_layout(world: int, straight, on_many) -> None:
    for expert_parallel, stage in LAYOUTS[world]:
        outcome = on_many[world][f"on from one process {expert_parallel} {stage}"]
        assert outcome.losses == pytest.approx(straight[UNINTERRUPTED].losses[STEPS:], rel=1e-6)
        assert outcome.norms == pytest.approx(straight[UNINTERRUPTED].norms[STEPS:], rel=1e-5)


def test_a_checkpoint_of_two_processes_goes_on_at_four(straight, on_many) -> None:
    outcomes = {name: outcome for name, outcome in on_many[4].items() if name.startswith("on from two")}
    assert len(outcomes) == sum(map(len, FROM_TWO.values()))
    for name, outcome in outcomes.items():
        assert outcome.losses == pytest.approx(straight[UNINTERRUPTED].losses[STEPS:], rel=1e-6), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_of_many_processes_goes_on_at_one(stage: int, straight, on_many, folder: Path) -> None:
    """Each stage reads what three layouts of another stage saved; together the stages read every layout."""
    every = [(world, *pair) for world, layouts in LAYOUTS.items() for pair in layouts]
    for world, expert_parallel, theirs in every[(stage + 1) % 4 :: 4]:
        saved = folder / f"saved {name_of(SAVED, expert_parallel, theirs)} world{world}"
        settings = [*CASES[SAVED], *layout(1, stage)]
        outcome = perform(Task(settings, STEPS, STEPS, load=str(saved)), world=1)
        assert outcome.losses == pytest.approx(straight[UNINTERRUPTED].losses[STEPS:], rel=1e-6), saved.name


def test_each_process_holds_its_share_of_the_experts_and_of_the_states(on_many) -> None:
    for world, layouts in LAYOUTS.items():
        whole = max(on_many[2][name_of(SAVED, 1, 0)].numbers_held)
        for expert_parallel, stage in layouts:
            outcome = on_many[world][name_of(SAVED, expert_parallel, stage)]
            if stage < 3:
                assert outcome.experts_held == [4 // expert_parallel] * world
            if stage > 0:
                assert sum(outcome.numbers_held) == pytest.approx(whole, rel=0.01)
                assert max(outcome.numbers_held) == pytest.approx(whole / world, rel=0.01)


def test_no_shard_holds_all_experts_and_all_shards_are_needed(on_many, folder: Path) -> None:
    saved = RunDir(folder / f"saved {name_of(SAVED, 4, 1)} world4").checkpoints
    (checkpoint,) = saved.iterdir()
    weights = sorted(checkpoint.glob("weights-*-of-00004.safetensors"))
    assert len(weights) == 4
    sizes = [path.stat().st_size for path in weights]
    assert max(sizes) < 0.3 * sum(sizes)
