"""Where the cooldown of `optim.schedule=wsd` begins, what is refused, and which runs share a trunk."""

from __future__ import annotations

import pytest

from experiments.config.cooldown import cooldown_start, trunk_key
from experiments.config.designs import load_designed
from experiments.config.identity import config_id
from experiments.config.overrides import load_config
from experiments.config.schema import RunConfig
from experiments.config.stored import stored_config
from experiments.errors import ConfigError, RecordError

WSD = ("optim.schedule=wsd", "train.batch_images=10", "optim.warmup_images=100")


def start(*overrides: str) -> int | None:
    return cooldown_start(load_config([*WSD, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "images"),
    [
        (["train.images=1000"], 800),
        (["train.images=1001"], 810),  # 101 batches, of which 20.2 are rounded to 20
        (["train.images=1000", "optim.cooldown_share=0.5"], 500),
        (["train.images=1000", "optim.cooldown_share=0.001"], 990),  # at least one batch
        (["train.images=1000", "optim.cooldown_share=1"], 100),  # never before the warm-up ends
        (["train.images=1000", "optim.cooldown_share=1", "optim.warmup_images=0"], 0),
        (["train.images=110"], 100),  # the shortest run: the warm-up and one batch
        (["train.images=120", "optim.warmup_images=101"], 110),
    ],
)
def test_the_cooldown_begins_at_a_whole_batch(overrides: list[str], images: int) -> None:
    assert start(*overrides) == images


def test_it_never_begins_earlier_in_a_longer_run() -> None:
    for share in (0.1, 0.2, 0.35, 0.5, 0.9, 1.0):
        starts = [start(f"train.images={n}", f"optim.cooldown_share={share}") or 0 for n in range(110, 700, 10)]
        assert starts == sorted(starts)


def test_other_schedules_have_no_cooldown_and_the_id_of_versions_without_it() -> None:
    config = load_config([])
    assert cooldown_start(config) is None
    assert not {"cooldown_share", "cooldown_shape"} & config.model_dump()["optim"].keys()
    assert config_id(config) == "37d3ba110b"
    assert trunk_key(config.model_dump(mode="json")) is None


def test_the_defaults_of_the_cooldown_are_part_of_the_id_and_of_what_is_stored(tmp_path) -> None:
    config = load_config([*WSD])
    assert (config.optim.cooldown_share, config.optim.cooldown_shape) == (0.2, "1-sqrt")
    spelled_out = load_config([*WSD, "optim.cooldown_share=0.2", "optim.cooldown_shape=1-sqrt"])
    assert config_id(config) == config_id(spelled_out)
    assert config_id(config) != config_id(load_config([*WSD, "optim.cooldown_shape=linear"]))
    stored = config.model_dump(mode="json")
    assert stored["optim"]["cooldown_share"] == 0.2
    assert stored_config(stored, tmp_path) == config
    with pytest.raises(RecordError, match="out of range"):
        stored_config({**stored, "optim": {**stored["optim"], "cooldown_share": 0.0}}, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.images=100"],
            r"train\.images=100 leaves no batch for the cooldown after optim\.warmup_images=100\. Use train\.images=11",
        ),
        (["train.images=20"], r"Use train\.images=110 or more, or a shorter warm-up\."),
        (["optim.cooldown_share=0"], r"optim\.cooldown_share=0 is out of range\. It must be greater than 0\."),
        (["optim.cooldown_share=1.01"], r"optim\.cooldown_share=1\.01 is out of range\. It must be less than or equal"),
        (["optim.cooldown_share=-1"], "is out of range"),
        (["optim.cooldown_shape=cosine"], r"optim\.cooldown_shape='cosine' is not '1-sqrt', 'linear' or None"),
        (
            ["optim.schedule=cosine", "optim.cooldown_share=0.1"],
            r"share=0\.1 does not fit optim\.schedule=cosine",
        ),
        (["optim.schedule=constant", "optim.cooldown_shape=linear"], r"does not fit optim\.schedule=constant, which"),
    ],
)
def test_a_cooldown_that_does_not_fit_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_config([*WSD, *overrides])
    assert "\n" not in str(error.value)


def test_a_budget_of_flops_is_checked_for_its_own_length_and_not_for_the_default_one() -> None:
    long_warm_up = [*WSD, "optim.warmup_images=50000"]
    with pytest.raises(ConfigError, match=r"train\.images=38400 leaves no batch"):
        load_config(long_warm_up)
    assert load_designed([*long_warm_up, "ecdit.train_flops=1e13"]).config.total_images > 50_000
    with pytest.raises(ConfigError, match=r"leaves no batch for the cooldown after optim\.warmup_images=50000"):
        load_designed([*long_warm_up, "ecdit.train_flops=1e11"])


def settings(*overrides: str) -> dict[str, object]:
    return load_config([*WSD, *overrides]).model_dump(mode="json")


def test_runs_share_a_trunk_where_they_differ_in_their_length_alone() -> None:
    key = trunk_key(settings("train.images=1000"))
    assert trunk_key(settings("train.images=2000")) == key
    others = ("seed=1", "log.every_images=160", "optim.cooldown_share=0.1", "train.batch_images=20", "parallel.world=2")
    assert len({key, *(trunk_key(settings("train.images=2000", other)) for other in others)}) == 1 + len(others)


def test_runs_whose_rate_follows_their_length_share_no_trunk() -> None:
    assert trunk_key(settings("train.images=1000", "optim.rate_by_length=100")) is None


def test_a_shorter_share_of_the_cooldown_is_another_family() -> None:
    # Its trunk would be the same, but its runs are not those of one curve over lengths.
    short, long = settings("optim.cooldown_share=0.1"), settings("optim.cooldown_share=0.4")
    assert trunk_key(short) != trunk_key(long)
    assert isinstance(RunConfig.model_validate(short).optim.cooldown_share, float)
