"""Captions: a closed vocabulary, and words and assertions as inverses."""

from __future__ import annotations

import pytest

from experiments.config.caption_kinds import PAD_TOKEN, START_TOKEN
from experiments.data.scenes.captions import (
    VOCABULARY,
    Assertion,
    Term,
    assertion_of,
    caption_space,
    compose,
    describe,
    parse,
    tokenize,
)
from experiments.data.scenes.scene import KINDS, SPLITS, draw_scenes
from experiments.errors import ConfigError


@pytest.mark.parametrize(
    ("caption", "assertion"),
    [
        ("a circle", Assertion("single_object", (Term("circle", None, 1),), None)),
        ("a circle and a square", Assertion("two_object", (Term("circle", None, 1), Term("square", None, 1)), None)),
        ("three red crosses", Assertion("counting", (Term("cross", "red", 3),), None)),
        ("a red circle", Assertion("colors", (Term("circle", "red", 1),), None)),
        (
            "a red circle left of a blue square",
            Assertion("position", (Term("circle", "red", 1), Term("square", "blue", 1)), "left of"),
        ),
        (
            "a red circle and a blue square",
            Assertion("color_attribution", (Term("circle", "red", 1), Term("square", "blue", 1)), None),
        ),
    ],
)
def test_captions_mean_what_they_say(caption, assertion):
    assert parse(caption) == assertion
    assert compose(assertion) == caption


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_survives_the_round_trip(split):
    for scene in draw_scenes(1, range(2000), split):
        assert parse(describe(scene)) == assertion_of(scene)


def test_assertions_are_true_of_their_scenes():
    scenes = draw_scenes(2, range(1000), "train")
    assert {scene.kind for scene in scenes} == set(KINDS)
    for scene in scenes:
        assertion = assertion_of(scene)
        assert (assertion.kind, assertion.relation) == (scene.kind, scene.relation)
        named = [term for term in assertion.terms for _ in range(term.count)]
        for term, thing in zip(named, scene.objects, strict=True):
            assert term.shape == thing.shape
            assert term.color in (None, thing.color)


@pytest.mark.parametrize("split", SPLITS)
def test_the_caption_space_holds_what_is_drawn_and_parses_back(split):
    space = caption_space(split)
    assert {describe(scene) for scene in draw_scenes(3, range(2000), split)} <= space
    assert all(compose(parse(caption)) == caption for caption in space)


def test_there_are_far_more_captions_than_a_model_memorises():
    assert len(caption_space("train")) == len(caption_space("validation")) == 15_016
    assert len(caption_space("held_out")) == 312


def test_held_out_captions_are_never_trained_on():
    assert caption_space("held_out").isdisjoint(caption_space("train"))


def test_the_vocabulary_is_closed_and_its_ids_never_move():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 36 <= 64
    assert VOCABULARY[PAD_TOKEN] == "<pad>"
    assert VOCABULARY[START_TOKEN] == "<start>"
    assert tokenize("a red circle left of a blue square") == [1, 2, 12, 20, 7, 9, 2, 14, 21, 0, 0, 0, 0, 0, 0, 0]
    assert {word for caption in caption_space("train") for word in caption.split()} == set(VOCABULARY[2:])


def test_every_caption_has_its_own_ids_and_fits():
    space = caption_space("train")
    assert len({tuple(tokenize(caption)) for caption in space}) == len(space)
    assert max(len(caption.split()) for caption in space) < 16


def test_the_null_caption_is_the_start_alone():
    assert tokenize("") == [START_TOKEN] + [PAD_TOKEN] * 15


def test_case_and_spaces_do_not_matter():
    assert tokenize(" A  Red CIRCLE ") == tokenize("a red circle")
    assert parse("A Red circle") == parse("a red circle")


@pytest.mark.parametrize("read", [tokenize, parse])
def test_unknown_words_are_all_named_with_the_vocabulary_by_category(read):
    with pytest.raises(ConfigError, match=r"the vocabulary of the data set lacks the words 'purple', 'dog'\.") as error:
        read("a purple dog above a dog")
    for known in ("colours: red, green", "shapes: circle, square", "relations: and, left", "numbers: a, two"):
        assert known in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", ["<pad> circle", "<start>"])
def test_special_tokens_are_not_words(words):
    with pytest.raises(ConfigError, match="lacks the words"):
        tokenize(words)


@pytest.mark.parametrize(
    "caption", ["", "circle", "a circles", "two circle", "a red", "a circle left a square", "a circle and two squares"]
)
def test_what_is_no_caption_is_refused_with_examples(caption):
    with pytest.raises(ConfigError, match=r"is not a caption of the shapes data\. Write 'a circle'"):
        parse(caption)


def test_a_caption_that_is_too_long_is_refused():
    assert len(tokenize("a " * 15)) == 16
    with pytest.raises(ConfigError, match=r"16 words.*Use at most 15 words"):
        tokenize("a " * 16)
