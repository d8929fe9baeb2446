"""Converts between scenes, what their captions assert, the words of captions, and token ids.

The vocabulary is closed and its order is part of the data: trained text encoders rely on the ids. `describe` and
`parse` are inverse, so a judge can check an image against any caption of the grammar:

    caption  = things | thing "and" thing | thing relation thing
    things   = ("two" | "three" | "four") [colour] shapes
    thing    = "a" [colour] shape
    relation = "left of" | "right of" | "above" | "below"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

from experiments.config.caption_kinds import PAD_TOKEN, START_TOKEN
from experiments.data.scenes.objects import COLORS, SHAPES
from experiments.data.scenes.scene import (
    COUNTS,
    RELATIONS,
    Kind,
    Look,
    Relation,
    Scene,
    Split,
    kinds_of,
    looks_of,
)
from experiments.errors import ConfigError

NUMBER_WORDS = {1: "a", 2: "two", 3: "three", 4: "four"}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
WORDS_BY_CATEGORY: dict[str, tuple[str, ...]] = {
    "numbers": tuple(NUMBER_WORDS.values()),
    "relations": ("and", "left", "right", "of", "above", "below"),
    "colours": tuple(COLORS),
    "shapes": tuple(SHAPES),
    "plurals": tuple(PLURALS.values()),
}
VOCABULARY: tuple[str, ...] = ("<pad>", "<start>", *(word for words in WORDS_BY_CATEGORY.values() for word in words))
"""All tokens; the id of a token is its place in this tuple."""

_IDS = {word: token for token, word in enumerate(VOCABULARY)}
_WORDS = frozenset(VOCABULARY[2:])
_COUNT_BY_WORD = {word: count for count, word in NUMBER_WORDS.items()}
_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}
_RELATION_BY_WORDS: dict[str, Relation] = {relation: relation for relation in RELATIONS}
_THING = rf"(a) (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})"
_THINGS = rf"({'|'.join(NUMBER_WORDS[count] for count in COUNTS)}) (?:({'|'.join(COLORS)}) )?({'|'.join(_SINGULARS)})"
_ONE = re.compile(rf"{_THING}|{_THINGS}")
_TWO = re.compile(rf"{_THING} (and|{'|'.join(RELATIONS)}) {_THING}")


@dataclass(frozen=True)
class Term:
    """Describes `count` objects of one shape, and of one colour where the caption names it."""

    shape: str
    color: str | None
    count: int


@dataclass(frozen=True)
class Assertion:
    """Holds what a caption says: one term or two; `relation` is the position of the first relative to the second."""

    kind: Kind
    terms: tuple[Term, ...]
    relation: Relation | None


def describe(scene: Scene) -> str:
    """Returns the caption of a scene: 'a circle', 'three red circles', 'a red circle left of a blue square', ..."""
    return compose(assertion_of(scene))


def assertion_of(scene: Scene) -> Assertion:
    """Returns what a scene's caption asserts: all its objects, and their colours where the kind names them."""
    return _assertion(scene.kind, tuple((o.color, o.shape) for o in scene.objects), scene.relation)


def compose(assertion: Assertion) -> str:
    """Returns the words of an assertion."""
    return f" {assertion.relation or 'and'} ".join(map(_phrase, assertion.terms))


def parse(caption: str) -> Assertion:
    """Returns what a caption asserts, as the inverse of `compose`; the kind follows from what is named.

    Raises `ConfigError`, which names every word outside the vocabulary, or shows the grammar.
    """
    words = " ".join(_known_words(caption))
    if match := _ONE.fullmatch(words):
        number, color, shape = match.groups()[:3] if match[1] else match.groups()[3:]
        term = Term(_SINGULARS.get(shape, shape), color, _COUNT_BY_WORD[number])
        return Assertion("counting" if term.count > 1 else "colors" if color else "single_object", (term,), None)
    if match := _TWO.fullmatch(words):
        terms = (Term(match[3], match[2], 1), Term(match[7], match[6], 1))
        relation = _RELATION_BY_WORDS.get(match[4])
        kind: Kind = "position" if relation else "color_attribution" if match[2] or match[6] else "two_object"
        return Assertion(kind, terms, relation)
    raise ConfigError(
        f"{caption!r} is not a caption of the shapes data.",
        "Write 'a circle', 'a red circle', 'three red circles', 'a circle and a square', "
        "'a red circle and a blue square', or 'a red circle left of a blue square' (right of, above, below).",
    )


def tokenize(caption: str, length: int = 16) -> list[int]:
    """Returns token ids: `<start>`, the words, `<pad>` up to `length`. Known words may come in any order.

    Raises `ConfigError`, which names every word outside the vocabulary, or says that the caption is too long.
    """
    words = _known_words(caption)
    if len(words) >= length:
        raise ConfigError(f"the caption has {len(words)} words: {caption!r}.", f"Use at most {length - 1} words.")
    return [START_TOKEN, *(_IDS[word] for word in words), *[PAD_TOKEN] * (length - 1 - len(words))]


def caption_space(split: Split) -> set[str]:
    """Returns every caption that a split can draw."""
    return {
        compose(_assertion(kind, looks * count, relation))
        for kind in kinds_of(split)
        for looks in looks_of(kind, split)
        for count, relation in product(
            COUNTS if kind == "counting" else (1,), RELATIONS if kind == "position" else (None,)
        )
    }


def _assertion(kind: Kind, looks: tuple[Look, ...], relation: Relation | None) -> Assertion:
    """Returns what a caption says of a scene of `kind` with objects of these looks."""
    if kind == "counting":
        return Assertion(kind, (Term(looks[0][1], looks[0][0], len(looks)),), None)
    named = kind not in ("single_object", "two_object")
    return Assertion(kind, tuple(Term(shape, color if named else None, 1) for color, shape in looks), relation)


def _phrase(term: Term) -> str:
    """Returns a term in words: 'a red circle', 'three red circles', 'a circle'."""
    noun = term.shape if term.count == 1 else PLURALS[term.shape]
    return " ".join(word for word in (NUMBER_WORDS[term.count], term.color, noun) if word)


def _known_words(caption: str) -> list[str]:
    """Returns the words in lower case. Raises `ConfigError` for those that are not in the vocabulary."""
    words = caption.lower().split()
    unknown = dict.fromkeys(word for word in words if word not in _WORDS)
    if unknown:
        known = "; ".join(f"{category}: {', '.join(words)}" for category, words in WORDS_BY_CATEGORY.items())
        raise ConfigError(
            f"the vocabulary of the data set lacks the words {', '.join(map(repr, unknown))}.", f"Known {known}."
        )
    return words
