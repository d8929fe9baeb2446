"""Texts become values by what the setting accepts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from experiments.config.values import BARE_WORDS, Accepts, ListedText, accepted_by, convert
from experiments.errors import ConfigError

PositiveFloat = Annotated[float, Field(gt=0)]


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("1e-5", float, 1e-5),
        ("2", float, 2.0),
        ("1e6", int, 1_000_000),
        ("38_400", int, 38_400),
        ("8.0", int, 8),
        ("-3", int, -3),
        ("12345678901234567891", int, 12345678901234567891),
        ("1e6", str, "1e6"),
        ("none", str, "none"),
        ("batch", int | Literal["batch"], "batch"),
        ("4", int | Literal["batch"], 4),
        ("same", PositiveFloat | Literal["same"] | None, "same"),
        ("3", Literal[3], 3),
        ("False", Literal["off", "rms"], "off"),
        ("False", bool | Literal["off"], False),
    ],
)
def test_a_text_is_read_by_the_type_of_the_setting(text: str, annotation: Any, value: object) -> None:
    read = convert("key", text, accepted_by(annotation))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["None", "none", "null", "NULL", "~", ""])
def test_none_has_the_spellings_of_python_and_yaml(text: str) -> None:
    assert convert("key", text, accepted_by(float | None)) is None


@pytest.mark.parametrize(
    ("texts", "value"),
    [(("True", "true", "TRUE", "yes", "on"), True), (("False", "false", "FALSE", "no", "off"), False)],
)
def test_booleans_have_the_spellings_of_python_and_yaml(texts: tuple[str, ...], value: bool) -> None:
    assert [convert("key", text, accepted_by(bool)) for text in texts] == [value] * len(texts)


@pytest.mark.parametrize(
    ("text", "annotation", "message"),
    [
        ("many", int, "key='many' is not an integer."),
        ("1.5", int, "key='1.5' is not an integer."),
        ("True", int, "key='True' is not an integer."),
        ("fast", float, "key='fast' is not a number."),
        ("maybe", bool, "key='maybe' is not true or false."),
        ("None", int, "key='None' is not an integer."),
        ("bath", int | Literal["batch"] | None, "not an integer, 'batch' or None. Did you mean 'batch'?"),
        ("x", Literal["a", "b"], "key='x' is not 'a' or 'b'."),
        ("False", Literal["a", "b"], "key='False' is not 'a' or 'b'. " + BARE_WORDS),
    ],
)
def test_a_text_of_the_wrong_type_is_named_with_what_is_accepted(text: str, annotation: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert("key", text, accepted_by(annotation))
    assert str(caught.value).endswith(message)


def test_a_listed_text_is_described_by_its_marker() -> None:
    accepts = accepted_by(Literal["all"] | Annotated[str, ListedText("numbers")])
    assert str(accepts) == "'all' or numbers"
    assert [convert("key", text, accepts) for text in ("all", "1,2")] == ["all", "1,2"]


def test_unions_literals_and_constraints_are_looked_into() -> None:
    assert accepted_by(PositiveFloat | Literal["same"] | None) == Accepts(frozenset({float}), ("same",), none=True)
