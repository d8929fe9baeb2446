"""A plan that cannot fit is refused with the smallest layout that does."""

from __future__ import annotations

import pytest

from experiments.config.overrides import load_config
from experiments.errors import SpecError
from sweeps.cost import Place, estimated, table_device
from sweeps.layout_search import differences, fits, layouts, needed_gib, refuse_what_does_not_fit, smallest_layout
from sweeps.planner import make_plan


def refuse(plan, place):
    refuse_what_does_not_fit(estimated(plan, place), place)


LARGE = ("model=XL", "routing.num_experts=64", "train.batch_images=64")


def test_what_fits_is_not_refused(grid):
    refuse(make_plan(grid(model__name=["nano", "XL"], routing__name="dense")), table_device("H100"))


def test_a_refusal_names_the_run_the_need_and_a_layout_that_fits(grid):
    plan = make_plan(grid(model__name=["nano", "XL"], routing__num_experts=64, train__batch_images=64))
    with pytest.raises(SpecError) as caught:
        refuse(plan, table_device("H100"))
    needed = needed_gib(load_config(LARGE), table_device("H100"))
    assert caught.value.message == f"{plan.runs[1].name} needs {needed:.1f} GiB, and H100 has 74.5."
    settings = caught.value.hint.removeprefix("Use ").partition(" (")[0].split()
    assert fits(load_config([*LARGE, *settings]), table_device("H100"))
    assert "\n" not in str(caught.value)


def test_the_layout_that_is_proposed_is_the_smallest():
    config, place = load_config(LARGE), table_device("H100")
    smallest = smallest_layout(config, place)
    tried = list(layouts(config, place.max_world))
    before = tried[: tried.index(smallest)]
    assert before
    assert not any(fits(layout, place) for layout in before)
    assert all(layout.parallel.world <= smallest.parallel.world for layout in before)


def test_more_memory_never_takes_more_devices():
    config = load_config(LARGE)
    worlds = [smallest_layout(config, table_device(name)).parallel.world for name in ("A100-40GB", "H100", "H200")]
    assert worlds == sorted(worlds, reverse=True)
    assert worlds[0] > worlds[-1]


def test_layouts_keep_the_batch_and_are_accepted_by_training():
    config = load_config(["train.batch_images=12", "routing.group_images=3"])
    found = {(c.parallel.world, c.train.accumulation) for c in layouts(config, 4)}
    assert found == {(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)}  # groups of 3 divide each micro batch
    assert all(c.train.batch_images == 12 for c in layouts(config, 4))


def test_what_costs_least_is_changed_first():
    config = load_config(["train.batch_images=2", "routing=dense", "train.precision=bf16"])
    order = [
        (c.parallel.world, c.parallel.activation_checkpointing, c.train.accumulation, c.parallel.zero_stage)
        for c in layouts(config, 1)
    ]
    steps = [(again, passes, stage) for again in (False, True) for passes in (1, 2) for stage in ("auto", 2, 3)]
    assert order == [(1, *step) for step in steps]


def test_zero_0_is_proposed_in_fp32_only_and_checkpointing_that_was_asked_for_stays():
    in_fp32 = load_config(["train.precision=fp32", "parallel.activation_checkpointing=True"])
    assert {c.parallel.zero_stage for c in layouts(in_fp32, 1)} == {"auto", 0, 2, 3}
    assert {c.parallel.zero_stage for c in layouts(load_config([]), 1)} == {"auto", 2, 3}
    assert {c.parallel.zero_stage for c in layouts(load_config([]), 1, on_accelerator=False)} == {"auto", 0, 2, 3}
    assert all(c.parallel.activation_checkpointing for c in layouts(in_fp32, 2))


def test_zero_3_comes_without_expert_parallelism():
    found = list(layouts(load_config(["train.batch_images=8", "routing.num_experts=8"]), 8))
    assert {c.parallel.expert_parallel for c in found if c.parallel.zero_stage == 3} == {1}
    assert {c.parallel.expert_parallel for c in found if c.parallel.zero_stage == 2} == {1, 2, 4, 8}


def test_several_runs_that_do_not_fit_are_counted(grid):
    plan = make_plan(grid(model__name=["nano", "micro"], seed=[0, 1]))
    with pytest.raises(
        SpecError, match=r"micro.* needs 0\.\d GiB, and a box has 0\.1\. Other runs that do not fit: 3\."
    ):
        refuse(plan, Place("a box", 0.1, on_accelerator=False, max_world=1))


def test_on_a_cpu_processes_share_the_memory_and_only_accumulation_helps():
    """In bf16, where ZeRO-0, which has no second copy of fp32 weights, is not proposed."""
    config = load_config(["model=micro", "parallel.world=2", "train.precision=bf16", "wandb.mode=disabled"])
    alone = load_config(["model=micro", "train.precision=bf16", "wandb.mode=disabled"])
    place = Place("a box", 0.6, on_accelerator=False, max_world=2)
    assert needed_gib(config, place) > needed_gib(alone, place) > 0.6
    smallest = smallest_layout(config, place)
    assert smallest.parallel.world == 1
    assert differences(config, smallest) == ["parallel.world=1", f"train.accumulation={smallest.train.accumulation}"]


def test_where_nothing_fits_it_says_so(grid):
    plan = make_plan(grid(model__name="micro"))
    with pytest.raises(SpecError, match="No micro batch fits: use a smaller model"):
        refuse(plan, Place("a box", 0.01, on_accelerator=False, max_world=1))
    with pytest.raises(SpecError, match=r"No layout of train\.batch_images=32 over up to 8 of them fits"):
        refuse(plan, Place("a card", 0.5, on_accelerator=True, max_world=8))


def test_more_processes_than_accelerators_are_refused(grid):
    plan = make_plan(grid(parallel__world=8))
    with pytest.raises(SpecError, match=r"asks for parallel\.world=8, and there are 2\. Use parallel\.world=1"):
        refuse(plan, Place("a card", 80.0, on_accelerator=True, max_world=2))
