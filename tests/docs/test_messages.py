"""Messages that pages quote are messages of the code."""

from __future__ import annotations

import re

import pytest

from tests.docs.messages import patterns
from tests.docs.pages import ALL_BLOCKS

QUOTED = [
    line.removeprefix("error: ")
    for block in ALL_BLOCKS
    if block.language == "text"
    for line in block.text.splitlines()
    if line.startswith("error: ")
]


@pytest.fixture(scope="module")
def messages() -> list[re.Pattern[str]]:
    return patterns()


def test_there_are_many() -> None:
    assert len(QUOTED) > 30


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_code(quoted: str, messages: list[re.Pattern[str]]) -> None:
    assert any(message.fullmatch(quoted) for message in messages)


@pytest.mark.parametrize("invented", ["The flux is too low. Add plutonium.", "out is a sweep already planned. Cry."])
def test_an_invented_message_is_none(invented: str, messages: list[re.Pattern[str]]) -> None:
    assert not any(message.fullmatch(invented) for message in messages)
