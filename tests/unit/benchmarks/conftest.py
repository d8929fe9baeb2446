"""The fixtures of tiny runs and of configs, which these tests use too."""

from __future__ import annotations

from tests.unit.data.conftest import make_config
from tests.unit.training.conftest import advance, build, one_process, rows_of, tiny

__all__ = ["advance", "build", "make_config", "one_process", "rows_of", "tiny"]
