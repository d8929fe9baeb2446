"""Buffers of text features: never two users, never stale features, and memory that is used again."""

from __future__ import annotations

import torch

from experiments.data.buffers import MAX_KEPT_BUFFERS, TextBuffers

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
    assert len(buffers._kept) == 1


def test_another_shape_has_another_buffer_and_not_all_are_kept() -> None:
    buffers = TextBuffers()
    alive = [buffers.take((1, length, 3)) for length in range(1, 2 * MAX_KEPT_BUFFERS)]
    assert [text_BLV.shape[1] for _, text_BLV in alive] == list(range(1, 2 * MAX_KEPT_BUFFERS))
    assert len(buffers._kept) == MAX_KEPT_BUFFERS
