"""Designs: runs of equal FLOPs, dense runs of equal activated parameters, and what is refused."""

from __future__ import annotations

import pytest

from experiments.config.budget import budget
from experiments.config.designs import ALIGNED_WITHIN, MATMUL_COLUMNS, load_designed, separate
from experiments.config.identity import run_name
from experiments.config.overrides import load_config
from experiments.config.routers import ROUTERS, routed_names, trained_names
from experiments.errors import ConfigError

EXPERTS = ("routing.name=expert_choice", "routing.num_experts=8")


def spent(config):
    return config.total_images * budget(config).train_flops_per_image


@pytest.mark.parametrize("model", ["nano", "micro"])
@pytest.mark.parametrize("router", ["dense", *trained_names()])
def test_a_flop_budget_is_met_to_half_a_batch(model, router):
    designed = load_designed([f"model={model}", f"routing={router}", "ecdit.train_flops=1e12"])
    half_a_batch = budget(designed.config).train_flops_per_image * designed.config.train.batch_images / 2
    assert abs(spent(designed.config) - 1e12) <= half_a_batch
    assert designed.config.train.images % designed.config.train.batch_images == 0
    assert designed.train_flops_budget == 1e12


@pytest.mark.parametrize("warmup", [64, 3200, 1_000_000])
@pytest.mark.parametrize("flops", ["1e10", "1e12"])
def test_a_flop_budget_is_met_where_the_capacity_falls_during_training(warmup, flops):
    words = [*EXPERTS, f"routing.capacity_warmup_images={warmup}", f"ecdit.train_flops={flops}"]
    config = load_designed(words).config
    assert abs(spent(config) - float(flops)) <= budget(config).train_flops_per_image * config.train.batch_images


@pytest.mark.parametrize("router", [name for name in routed_names() if not ROUTERS[name].trained])
def test_a_router_whose_runs_are_merged_is_not_trained(router):
    with pytest.raises(ConfigError) as refusal:
        load_designed([f"routing={router}"])
    assert str(refusal.value) == (
        f"routing.name={router} is not trained: its experts are the feed-forwards of finished dense runs. "
        "Make such a run with `ecdit merge RUN RUN OUT`, or use routing.name=expert_choice."
    )
    assert load_config([f"routing={router}"]).routing.name == router


def test_a_design_changes_nothing_but_what_it_speaks_of():
    designed = load_designed(["model=micro", "ecdit.train_flops=1e12"]).config
    assert designed == load_config(["model=micro", f"train.images={designed.train.images}"])


@pytest.mark.parametrize("model", ["nano", "micro", "S", "XL", "M", "dit-moe-B"])
@pytest.mark.parametrize(("way", "mismatch"), [("ffn_factor", 2e-3), ("width", 0.06)])
@pytest.mark.parametrize("router", trained_names())
def test_the_dense_match_activates_as_many_parameters(model, way, mismatch, router):
    overrides = [f"model={model}", f"routing={router}"]
    designed = load_designed([*overrides, f"ecdit.iso_activation={way}"])
    experts = load_config(overrides)
    assert designed.matched_params_active == budget(experts).params_active
    assert designed.matched_run == run_name(experts)
    assert designed.config.routing.name == "dense"
    assert designed.config.model.num_layers == experts.model.num_layers
    assert budget(designed.config).params_active == pytest.approx(designed.matched_params_active, rel=mismatch)


@pytest.mark.parametrize("model", ["mini", "S", "B", "L", "XL", "M"])
def test_the_matched_feed_forward_is_as_wide_as_matmuls_like(model):
    dense = load_designed([f"model={model}", *EXPERTS, "ecdit.iso_activation=ffn_factor"]).config.model
    assert round(dense.ffn_factor * dense.width) % 8 == 0


# The parameters of one hidden column in all layers of width d: those of matrices, and of biases where there are any.
COLUMNS = {
    ("model=nano",): lambda d, layers: 2 * d * layers,
    ("model=micro",): lambda d, layers: 2 * d * layers,
    ("model=nano", "model.ffn=swiglu"): lambda d, layers: 3 * d * layers,
    ("model=nano", "model.block=dit"): lambda d, layers: (2 * d + 1) * layers,
    ("model=nano", "model.block=dit", "model.ffn=swiglu"): lambda d, layers: (3 * d + 2) * layers,
    # The last layer does not change text tokens.
    ("model=nano", "model.block=mmdit"): lambda d, layers: (2 * d + 1) * (2 * layers - 1),
    ("model=sd3-15",): lambda d, layers: (2 * d + 1) * (2 * layers - 1),
}


@pytest.mark.parametrize("settings", COLUMNS)
def test_the_matched_feed_forward_is_within_half_a_column(settings):
    designed = load_designed([*settings, *EXPERTS, "ecdit.iso_activation=ffn_factor"])
    model, target = designed.config.model, designed.matched_params_active
    gap, hidden = abs(budget(designed.config).params_active - target), round(model.ffn_factor * model.width)
    is_aligned = hidden % MATMUL_COLUMNS == 0 and gap <= ALIGNED_WITHIN * target
    assert gap <= COLUMNS[settings](model.width, model.num_layers) / 2 or is_aligned


@pytest.mark.parametrize("way", ["ffn_factor", "width"])
def test_a_match_is_the_config_that_its_settings_spell_out(way):
    overrides = ["model=M", "routing=expert_choice", "seed=3", "optim.learning_rate=0.5"]
    matched = load_designed([*overrides, f"ecdit.iso_activation={way}"]).config
    value = getattr(matched.model, way)
    settings = ["routing=dense", f"model.num_layers={matched.model.num_layers}", f"model.{way}={value!r}"]
    assert matched == load_config([*overrides, *settings])


@pytest.mark.parametrize("way", ["ffn_factor", "width"])
def test_no_neighbouring_size_matches_better(way):
    overrides = ["model=nano", *EXPERTS]  # of few columns, so that none is left out for the sake of matmuls
    dense = load_designed([*overrides, f"ecdit.iso_activation={way}"])
    model, target = dense.config.model, dense.matched_params_active
    step = 2 * model.num_heads if way == "width" else 1 / model.width
    value = getattr(model, way)
    for neighbour in (value - step, value + step):
        other = load_config(["model=nano", "routing=dense", f"model.ffn_factor={model.ffn_factor}",
                             f"model.{way}={neighbour}"])  # fmt: skip
        assert abs(budget(other).params_active - target) >= abs(budget(dense.config).params_active - target)


@pytest.mark.parametrize("settings", [["routing=dense"], ["routing=dense", "model.ffn_factor=6"]])
def test_a_dense_run_is_its_own_match(settings):
    designed = load_designed([*settings, "ecdit.iso_activation=ffn_factor"])
    assert designed.config == load_config(settings)
    assert designed.matched_run is None


def test_a_match_has_the_budget_of_its_flops_and_not_of_its_pair():
    both = ["model=micro", *EXPERTS, "routing.capacity_factor=4", "ecdit.train_flops=1e12"]
    dense, experts = load_designed([*both, "ecdit.iso_activation=width"]), load_designed(both)
    assert dense.config.train.images != experts.config.train.images
    assert spent(dense.config) == pytest.approx(spent(experts.config), rel=0.03)
    assert dense.matched_run == run_name(experts.config)


def test_designs_are_found_in_arms_and_the_later_one_wins():
    plain, designs = separate(["arm=routing=dense ecdit.train_flops=1e9", "--ecdit.train_flops=2e9", "seed=1"])
    assert plain == ["routing=dense", "seed=1"]
    assert designs == {"ecdit.train_flops": "2e9"}


def test_a_file_of_settings_may_hold_designs_and_the_command_line_wins(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: micro\necdit.train_flops: 1e12\necdit: {iso_activation: width}\n")
    words = ["model=micro", "ecdit.train_flops=1e12", "ecdit.iso_activation=width"]
    assert load_designed(file=file) == load_designed(words)
    for override in ("ecdit.train_flops=2e12", "ecdit.iso_activation=None"):
        assert load_designed([override], file) == load_designed([*words, override])
    assert load_designed(["train.images=64"], file) == load_designed([words[0], words[2], "train.images=64"])


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("ecdit.train_flop: 1", [], r"'ecdit\.train_flop' is not a design\. Did you mean 'ecdit\.train_flops'\?"),
        ("ecdit.train_flops: many", [], r"ecdit\.train_flops=many is not a number of FLOPs"),
        ("ecdit.train_flops: 1e12\ntrain.images: 64", [], r"train\.images and ecdit\.train_flops both"),
        ("ecdit.train_flops: 1e12", ["ecdit.train_flops=1e12", "train.images=64"], r"train\.images and ecdit"),
        ("ecdit.tune: x", [], r"ecdit\.tune compares several runs, and this command trains one"),
    ],
)
def test_a_design_in_a_file_that_cannot_be_met_is_named(tmp_path, text, overrides, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_designed(overrides, tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["None", "null"])
def test_none_is_no_design(text):
    overrides = [f"ecdit.train_flops={text}", f"ecdit.iso_activation={text}", "ecdit.seed=3", "model=micro"]
    assert load_designed(overrides).config == load_config(["model=micro"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ecdit.train_flop=1"], r"'ecdit\.train_flop' is not a design\. Did you mean 'ecdit\.train_flops'\?"),
        (["ecdit.train_flops=many"], r"ecdit\.train_flops=many is not a number of FLOPs"),
        (["ecdit.train_flops=-1"], r"ecdit\.train_flops=-1 is not a number of FLOPs"),
        (["ecdit.train_flops=inf"], r"ecdit\.train_flops=inf is not"),
        (["ecdit.train_flops"], r"'ecdit\.train_flops' is not KEY=VALUE"),
        (
            ["ecdit.train_flops=1e6"],
            r"ecdit\.train_flops=1e\+06 does not pay for half a batch of nano: 32 images .*Use",
        ),
        (
            ["ecdit.train_flops=1e6", "routing.capacity_warmup_images=64"],
            r"ecdit\.train_flops=1e\+06 does not pay for half a batch of nano",
        ),
        (["ecdit.train_flops=1e30", "routing.capacity_warmup_images=64"], r"train\.images=\d+ is out of range"),
        (["ecdit.train_flops=1e12", "train.images=64"], r"train\.images and ecdit\.train_flops both"),
        (["ecdit.iso_activation=widht"], r"iso_activation=widht is not a way to match\. Did you mean 'width'\?"),
    ],
)
def test_what_cannot_be_met_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_designed(overrides)
