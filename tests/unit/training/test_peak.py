"""The peak that utilisation is a share of."""

from __future__ import annotations

import time

import torch

from experiments.training import peak


def test_it_is_a_plausible_speed_measured_in_little_time_without_touching_random_numbers() -> None:
    peak.matmul_flops_per_second("fp32")  # the first use of a kernel loads it
    before, state = time.process_time(), torch.get_rng_state()
    measured = peak.matmul_flops_per_second("fp32")
    assert time.process_time() - before < 0.5 * torch.get_num_threads()
    assert 1e8 < measured < 1e16
    assert torch.equal(torch.get_rng_state(), state)


def test_no_product_is_faster_than_it() -> None:
    x_NN = torch.full((256, 256), 1 / 256)
    fastest = min(_seconds(x_NN) for _ in range(5))
    assert peak.matmul_flops_per_second("fp32") > 0.3 * 2 * 256**3 / fastest


def _seconds(x_NN: torch.Tensor) -> float:
    started = time.perf_counter()
    x_NN @ x_NN
    return time.perf_counter() - started
