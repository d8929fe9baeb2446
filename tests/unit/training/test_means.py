"""Rows are means over the steps since the row before, whatever interrupts them."""

from __future__ import annotations

import json

from experiments.training.means import RunningMeans

STEPS = [(8, 0.5, 1.0, 0.25, 3.0), (8, 1.5, 2.0, 0.75, 5.0), (8, 1.0, 6.0, 0.0, 1.0)]


def test_a_row_is_the_mean_since_the_row_before() -> None:
    means = RunningMeans()
    means.add(*STEPS[0])
    means.add(*STEPS[1])
    first = means.take_row(1e-3, train_flops_per_image=10, has_auxiliary_loss=True)
    assert (first.loss, first.auxiliary_loss, first.grad_norm) == (1.5, 0.5, 4.0)
    assert (first.images_seen, first.seconds, first.flops, first.images_per_second) == (16, 2.0, 160.0, 8.0)
    means.add(*STEPS[2])
    second = means.take_row(1e-3, train_flops_per_image=10, has_auxiliary_loss=False)
    assert (second.loss, second.auxiliary_loss, second.grad_norm) == (6.0, None, 1.0)
    assert (second.images_seen, second.seconds, second.images_per_second) == (24, 3.0, 8.0)


def test_saved_in_the_middle_of_a_row_it_goes_on_to_the_last_bit() -> None:
    straight, cut = RunningMeans(), RunningMeans()
    for values in ((8, 0.1, 1 / 3, 0.1, 2 / 3), (8, 0.2, 1 / 7, 0.3, 5 / 7)):
        straight.add(*values)
        cut.add(*values)
        cut = RunningMeans.from_state(json.loads(json.dumps({**cut.state(), "config_id": "ignored"})))
    assert cut == straight
