"""What a refused config has to say."""

from __future__ import annotations

import re

import pytest

from experiments.config.overrides import load_config
from experiments.errors import ConfigError


def assert_refused_with_a_way_out(overrides: str, message: str) -> None:
    """The settings are refused in one line with `message`, and what it says to use makes them a config."""
    with pytest.raises(ConfigError) as caught:
        load_config(overrides.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    way_out = re.search(r"Use ([\w.]+=[\w.,]*\w)", caught.value.hint)
    assert way_out is not None, caught.value.hint
    load_config([*overrides.split(), way_out.group(1)])
