"""The measurement of the loader: complete and consistent."""

from __future__ import annotations

import pytest

from experiments.benchmarks.drawing import measure_loader


def test_measurement_reports_the_whole_and_its_parts(make_config):
    measured = measure_loader(make_config(train={"batch_images": 16}), num_images=64)
    assert measured["num_images"] == 64
    assert measured["images_per_second"] == pytest.approx(1e6 / measured["batch_microseconds_per_image"])
    parts = {name.split("_")[0] for name in measured if name.endswith("_microseconds_per_image")}
    assert parts == {"batch", "scenes", "render", "captions", "noise"}
    assert all(value > 0 for value in measured.values())
