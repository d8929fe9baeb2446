"""The table of accelerators, and what this machine has."""

from __future__ import annotations

import psutil
import pytest

from experiments.errors import SpecError
from sweeps.devices import DEVICES, UTILISATION, accelerator_memory_gib, find_device, host_memory_gib


@pytest.mark.parametrize(
    "name",
    ["H100", "h100", "A100-40GB", "a100 40gb", "A100_80", "rtx4090", "mi300x", "h100-80gb", "H200 141GB", "b200_180"],
)
def test_a_device_is_found_in_any_spelling(name):
    known, device = find_device(name)
    assert DEVICES[known] is device


def test_a_device_that_is_not_in_the_table_names_the_closest():
    with pytest.raises(SpecError, match=r"--device 'H10' is not in the table\. Did you mean 'H100'\?"):
        find_device("H10")


def test_two_memories_of_one_chip_are_told_apart():
    assert find_device("A100-40GB")[1].memory_gib == pytest.approx(find_device("A100-80GB")[1].memory_gib / 2)
    with pytest.raises(SpecError, match="A100"):
        find_device("A100")


def test_matmul_speeds_are_dense_and_of_bf16():
    assert all(100 <= device.peak_bf16_teraflops <= 2500 for device in DEVICES.values())
    assert DEVICES["H100"].peak_flops_per_second == DEVICES["H200"].peak_flops_per_second == 989.4e12
    assert 0.2 <= UTILISATION <= 0.5


def test_links_inside_a_node_are_faster_than_its_network():
    for device in DEVICES.values():
        network = device.network_gigabytes_per_second
        assert network is None or 4 * network < device.node_gigabytes_per_second
    assert DEVICES["H100"].node_gigabytes_per_second == 450  # NVLink 4: 900 both ways


def test_the_memory_of_this_machine_is_at_most_what_it_has():
    assert 0 < host_memory_gib() <= psutil.virtual_memory().total / 2**30


def test_hidden_accelerators_are_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert accelerator_memory_gib() is None


def test_the_smallest_accelerator_counts(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert accelerator_memory_gib() == 40.0
