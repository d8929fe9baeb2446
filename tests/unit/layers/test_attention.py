"""Attention and adaptive layer norm."""

from __future__ import annotations

import pytest
import torch

from experiments.layers.attention import Attention, modulate


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (6, 3)])
def test_grouped_queries_equal_full_attention_with_repeated_keys_and_values(heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    width, size = 8 * heads, 8
    grouped, full = Attention(width, heads, kv_heads), Attention(width, heads, heads)
    key, value = grouped.key_value.weight.detach().view(2, kv_heads, size, width)
    repeated = torch.stack([part.repeat_interleave(heads // kv_heads, dim=0) for part in (key, value)])
    state = {**grouped.state_dict(), "key_value.weight": repeated.reshape(2 * width, width)}
    full.load_state_dict(state)
    x, context = torch.randn(2, 5, width), torch.randn(2, 7, width)
    torch.testing.assert_close(grouped(x, context), full(x, context))


def test_attention_is_softmax_of_scaled_products_of_normalised_heads() -> None:
    torch.manual_seed(0)
    attention, x = Attention(8, 1, 1), torch.randn(1, 4, 8)
    query, (key, value) = attention.query(x), attention.key_value(x).chunk(2, dim=-1)
    query, key = (torch.nn.functional.layer_norm(part, (8,)) for part in (query, key))
    expected = attention.out((query @ key.transpose(1, 2) / 8**0.5).softmax(dim=-1) @ value)
    torch.testing.assert_close(attention(x, x), expected)


def test_what_the_mask_hides_changes_nothing() -> None:
    torch.manual_seed(0)
    attention, x, context = Attention(16, 2, 1), torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()[:, None, None, :]
    hidden = context.clone()
    hidden[~mask.view(2, 6)] = 100.0
    torch.testing.assert_close(attention(x, context, mask), attention(x, hidden, mask))


def test_a_zero_output_starts_at_zero() -> None:
    attention = Attention(16, 2, 2, zero_output=True)
    assert not attention(torch.randn(1, 3, 16), torch.randn(1, 3, 16)).any()


def test_modulation_normalises_each_token_then_scales_and_shifts_it() -> None:
    x, shift, scale = torch.randn(2, 3, 64) * 5 + 2, torch.randn(2, 1, 64), torch.randn(2, 1, 64)
    plain = modulate(x, torch.zeros_like(shift), torch.zeros_like(scale))
    assert plain.mean(dim=-1).abs().max() < 1e-5
    torch.testing.assert_close(plain.var(dim=-1, correction=0), torch.ones(2, 3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(modulate(x, shift, scale), plain * (1 + scale) + shift)
