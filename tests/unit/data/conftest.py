"""Fixtures of the data room's tests."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from experiments.config.schema import RunConfig


class MakeConfig(Protocol):
    def __call__(self, **sections: Any) -> RunConfig: ...


@pytest.fixture
def make_config() -> MakeConfig:
    """A nano run with the given sections over the defaults."""

    def make(**sections: Any) -> RunConfig:
        return RunConfig.model_validate({"model": {"name": "nano"}, "routing": {}, **sections})

    return make
