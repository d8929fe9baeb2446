"""The fixtures of small routed layers and of small models, which the tests of the layers use too."""

from __future__ import annotations

from tests.unit.models.conftest import awake, inputs, settings
from tests.unit.routing.conftest import _seeded, config_of, gradients_of, layer_of

__all__ = ["_seeded", "awake", "config_of", "gradients_of", "inputs", "layer_of", "settings"]
