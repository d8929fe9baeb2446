import numpy as np
import pytest

from experiments.errors import RecordError
from experiments.records.compute_map import ComputeMap


def small() -> ComputeMap:
    random = np.random.default_rng(0)
    return ComputeMap(
        captions=("a red circle", "two blue squares"),
        images_BHWC=random.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8),
        experts_BKNT=random.integers(0, 5, (2, 3, 4, 16), dtype=np.uint8),
        times_N=np.array([1.0, 0.75, 0.5, 0.25], dtype=np.float32),
        layers_K=np.array([1, 3, 5]),
        num_experts=8,
        images_seen=640,
    )


def test_a_map_is_read_back_as_it_was_written(tmp_path):
    written = small()
    written.save(tmp_path / "new" / "map.npz")
    read = ComputeMap.load(tmp_path / "new" / "map.npz")
    assert read.captions == written.captions
    assert (read.num_experts, read.images_seen) == (8, 640)
    for name in ("images_BHWC", "experts_BKNT", "times_N", "layers_K"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


def test_the_mean_is_over_layers_and_times():
    whole = small()
    expected = [[whole.experts_BKNT[b, :, :, t].astype(float).mean() for t in range(16)] for b in range(2)]
    np.testing.assert_allclose(whole.mean_BT, expected)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(RecordError, match=r"map.npz does not exist.*ecdit evaluate RUN --metrics routing --again"):
        ComputeMap.load(tmp_path / "map.npz")


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_cut_file_is_called_damaged(tmp_path, keep):
    path = tmp_path / "map.npz"
    small().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RecordError, match="damaged"):
        ComputeMap.load(path)


def test_a_file_that_would_execute_code_is_refused(tmp_path):
    path = tmp_path / "map.npz"
    np.savez(path, about=np.array([0, 0]), captions=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RecordError, match="damaged"):
        ComputeMap.load(path)


def test_a_changed_byte_is_called_damage_wherever_it_is(tmp_path):
    """Compressed content, names, sizes and flags each make another error in zlib, zipfile or numpy."""
    path = tmp_path / "map.npz"
    small().save(path)
    whole = path.read_bytes()
    messages = set()
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            ComputeMap.load(path)  # dates and the like may be anything
        except RecordError as error:
            messages.add(str(error))
    assert any("invalid" in message for message in messages)
    again = "Make it again with: ecdit evaluate RUN --metrics routing --again"
    assert all(message.startswith(f"{path} is damaged (") and message.endswith(again) for message in messages)


def test_a_file_with_too_few_numbers_is_called_damaged(tmp_path):
    path = tmp_path / "map.npz"
    whole = small()
    arrays = {"images": whole.images_BHWC, "experts": whole.experts_BKNT, "times": whole.times_N}
    np.savez(path, captions=np.array(whole.captions), layers=whole.layers_K, about=np.array([8]), **arrays)
    with pytest.raises(RecordError, match="damaged"):
        ComputeMap.load(path)
