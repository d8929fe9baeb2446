"""Buffers of text features: never two users, never stale features, and memory that is used again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from experiments.data.sources.padded_text import MAX_KEPT_BUFFERS, TextBuffers

SHAPE = (2, 5, 3)


def test_a_buffer_is_used_again_only_when_no_tensor_on_it_is_left() -> None:
    buffers = TextBuffers()
    first, tensor_BLV = buffers.take(SHAPE)
    view_LV = tensor_BLV[1].flatten()
    del tensor_BLV
    second, _ = buffers.take(SHAPE)
    assert second is not first  # the view is alive
    del view_LV
    third, _ = buffers.take(SHAPE)
    assert third is first


def test_a_tensor_that_autograd_keeps_is_not_overwritten() -> None:
    buffers = TextBuffers()
    buffer, text_BLV = buffers.take(SHAPE)
    buffer.put(0, torch.ones(2, 3, dtype=torch.float16))
    weight = torch.ones(2, 5, 3, dtype=torch.float16, requires_grad=True)
    loss = (text_BLV * weight).sum()
    del text_BLV, buffer
    other, _other_BLV = buffers.take(SHAPE)
    other.put(0, torch.full((5, 3), 7, dtype=torch.float16))
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.sum() == 6


def test_padding_is_zero_whatever_was_there_before() -> None:
    buffers = TextBuffers()
    for lengths in ([5, 1], [2, 3], [0, 4], [1, 5]):
        buffer, text_BLV = buffers.take(SHAPE)
        for place, length in enumerate(lengths):
            buffer.put(place, torch.ones(length, 3, dtype=torch.float16))
            assert (text_BLV[place, :length] == 1).all()
            assert not text_BLV[place, length:].any()
        del text_BLV
        taken = buffer
    assert list(buffers.unused) == [taken]


def test_who_else_holds_a_buffer_does_not_matter() -> None:
    """A debugger, a log or a second name for the buffer's own array does not keep it from being used again."""
    buffers = TextBuffers()
    first, text_BLV = buffers.take(SHAPE)
    held = [first._array_BLV, first._array_BLV[0]]
    del text_BLV
    again, _ = buffers.take(SHAPE)
    assert again is first
    assert held


def test_threads_never_share_a_buffer() -> None:
    buffers, alive = TextBuffers(), []
    for _ in range(8):
        buffers.take(SHAPE)  # comes back at once
    with ThreadPoolExecutor(4) as threads:
        alive = list(threads.map(lambda _: buffers.take(SHAPE), range(200)))
    assert len({text_BLV.data_ptr() for _, text_BLV in alive}) == len({id(buffer) for buffer, _ in alive}) == 200


def test_another_shape_has_another_buffer_and_not_all_are_kept() -> None:
    buffers = TextBuffers()
    alive = [buffers.take((1, length, 3)) for length in range(1, 2 * MAX_KEPT_BUFFERS)]
    assert [text_BLV.shape[1] for _, text_BLV in alive] == list(range(1, 2 * MAX_KEPT_BUFFERS))
    alive.clear()
    assert len(buffers.unused) == MAX_KEPT_BUFFERS
