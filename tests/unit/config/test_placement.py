"""A placement of experts has one stored form, means the blocks it says, and is refused in one line otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config.identity import config_id
from experiments.config.limits import MAX_LAYERS
from experiments.config.overrides import load_config, validated
from experiments.config.placement import canonical_placement, fewest_layers, sparse_blocks
from experiments.errors import ConfigError

DEPTH = 8
PLACEMENTS = {
    "alternate": [1, 3, 5, 7],
    "all": [0, 1, 2, 3, 4, 5, 6, 7],
    "3:-1": [3, 4, 5, 6],
    "3:": [3, 4, 5, 6, 7],
    ":-1": [0, 1, 2, 3, 4, 5, 6],
    "1,3,5": [1, 3, 5],
    "0": [0],
}
placements = pytest.mark.parametrize("placement", PLACEMENTS)


@placements
def test_a_placement_means_the_blocks_that_it_says(placement: str) -> None:
    config = load_config([f"model.num_layers={DEPTH}", f"model.sparse_layers={placement}"])
    assert list(config.sparse_layer_indices) == PLACEMENTS[placement]
    assert config.model.sparse_layers == placement
    assert validated(config) == config


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("last", range(4))
def test_a_slice_is_that_of_python(first: int, last: int) -> None:
    placement = canonical_placement(f"{first or ''}:{-last or ''}")
    assert list(sparse_blocks(placement, DEPTH)) == list(range(DEPTH))[first : -last or None]


@placements
def test_no_shorter_model_has_a_placement(placement: str) -> None:
    enough = fewest_layers(placement)
    load_config([f"model.sparse_layers={placement}", f"model.num_layers={enough}"])
    if enough > 1:
        with pytest.raises(ConfigError, match=f"Use model.sparse_layers=all, or model.num_layers={enough}"):
            load_config([f"model.sparse_layers={placement}", f"model.num_layers={enough - 1}"])


@pytest.mark.parametrize("spelling", ["1,3", "3,1", "[1, 3]", "[3,1]", " 1 , 03 "])
def test_a_list_of_any_spelling_is_stored_in_one_form(spelling: str) -> None:
    config = load_config([f"model.sparse_layers={spelling}"])
    assert config.model.sparse_layers == "1,3"
    assert config_id(config) == config_id(load_config(["model.sparse_layers=1,3"]))


@pytest.mark.parametrize(("spelling", "stored"), [("0:", "all"), (":", "all"), ("0:-1", ":-1"), ("02:-1", "2:-1")])
def test_a_slice_of_any_spelling_is_stored_in_one_form(spelling: str, stored: str) -> None:
    assert load_config([f"model.sparse_layers={spelling}"]).model.sparse_layers == stored


@pytest.mark.parametrize(
    "text",
    ["model: {sparse_layers: [1, 3]}", "model.sparse_layers: 1,3", "model:\n  sparse_layers:\n  - 3\n  - 1\n"],
)
def test_a_file_has_a_list_or_a_text(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load_config(file=file).model.sparse_layers == "1,3"


def test_a_group_of_settings_in_one_word_has_a_list_or_a_text() -> None:
    for text in ("[1, 3]", "'1,3'"):
        assert load_config([f"model={{'sparse_layers': {text}}}"]).model.sparse_layers == "1,3"


@pytest.mark.parametrize("text", ["1;3", "1,", ",", "-1", "1:2", "::", ":-0", "1:-1:2", "[1", "1.5", "1e0", "", "1000"])
def test_a_malformed_placement_is_refused_with_the_forms_that_exist(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([f"model.sparse_layers={text}"])
    assert str(caught.value) == (
        f"model.sparse_layers='{text}' is not 'alternate', 'all' or blocks such as 3:-1 or 1,3,5. "
        "Use model.sparse_layers=alternate, or blocks counted from 0."
    )


def test_a_word_that_is_nearly_right_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'alternate'"):
        load_config(["model.sparse_layers=alternating", "routing=dense"])


def test_every_block_of_the_deepest_model_can_be_listed_and_sliced() -> None:
    listed = ",".join(map(str, range(MAX_LAYERS)))
    config = load_config([f"model.num_layers={MAX_LAYERS}", f"model.sparse_layers={listed}"])
    assert config.sparse_layer_indices == tuple(range(MAX_LAYERS))
    last = load_config([f"model.num_layers={MAX_LAYERS}", f"model.sparse_layers={MAX_LAYERS - 1}:"])
    assert last.sparse_layer_indices == (MAX_LAYERS - 1,)


def test_no_depth_is_offered_that_is_beyond_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"has no sparse layer\. Use model\.sparse_layers=all\.$"):
        load_config(["model.sparse_layers=600:-600"])
