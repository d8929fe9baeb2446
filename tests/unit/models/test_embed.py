"""Patches, positions, time and captions."""

from __future__ import annotations

import pytest
import torch

from experiments.data.scenes.captions import tokenize
from experiments.models.embed import TextEncoder, TimeEmbedding, patchify, sinusoidal_positions, unpatchify


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_unpatchify_is_the_inverse_of_patchify(patch_size: int) -> None:
    image = torch.randn(3, 3, 16, 16)
    patches = patchify(image, patch_size)
    assert patches.shape == (3, (16 // patch_size) ** 2, 3 * patch_size**2)
    assert torch.equal(unpatchify(patches, patch_size, 16), image)


def test_tokens_are_squares_of_the_image_in_reading_order() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(("width", "side"), [(64, 8), (30, 4), (384, 16)])
def test_no_two_tokens_have_the_same_position(width: int, side: int) -> None:
    position = sinusoidal_positions(width, side)
    assert position.shape == (side**2, width)
    assert torch.pdist(position).min() > 0.1


def test_half_of_a_position_is_its_row_and_half_its_column() -> None:
    position = sinusoidal_positions(64, 8).view(8, 8, 64)
    rows, columns = position.chunk(2, dim=-1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))


def test_times_are_told_apart_and_stay_finite_at_both_ends() -> None:
    _, time_BD, modulation_B6D = TimeEmbedding(32)(torch.tensor([0.0, 0.001, 0.5, 1.0]))
    assert time_BD.isfinite().all()
    assert torch.pdist(time_BD).min() > 1e-4
    assert modulation_B6D.shape == (4, 6, 32)
    assert not modulation_B6D.any()  # adaLN-zero: a block begins as the identity


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(vocab_size=64, length=16, text_width=64, num_layers=2, width=32)


def test_padding_is_not_read() -> None:
    text, ids = encoder(), torch.tensor([tokenize("a red circle")])
    features, mask, *_ = text(ids)
    with torch.no_grad():
        text.token.weight[0] += 10.0
    moved, *_ = text(ids)
    assert mask.view(-1).tolist() == [True] * 4 + [False] * 12
    assert torch.equal(features[:, :4], moved[:, :4])
    assert not torch.equal(features[:, 4:], moved[:, 4:])


def test_the_null_caption_has_one_token_and_finite_features() -> None:
    features, mask, pooled, dropped = encoder()(torch.tensor([tokenize("")]))
    assert mask.sum() == 1
    assert pooled is None
    assert dropped.tolist() == [True]
    assert features.isfinite().all()


def test_the_order_of_words_matters() -> None:
    ids = torch.tensor([tokenize("a red circle and a blue square"), tokenize("a blue circle and a red square")])
    features, *_ = encoder()(ids)
    assert not torch.allclose(features[0], features[1])
