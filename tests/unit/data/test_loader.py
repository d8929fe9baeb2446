"""Batches: independent of batch size and ranks, exact on resume, and a validation set that is the same for all."""

from __future__ import annotations

import threading
from dataclasses import fields
from itertools import islice

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from experiments.data.loader import Batch, TrainStream, same_time_batches, validation_set
from experiments.data.scenes.captions import VOCABULARY, describe, tokenize
from experiments.data.scenes.scene import draw_scenes, render_scenes

MASKED = {"mask_ratio": 0.5, "caption_dropout": 0.2}


def tensors(batch: Batch) -> dict[str, Tensor]:
    named = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def assert_same(batch: Batch, other: Batch) -> None:
    a, b = tensors(batch), tensors(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def joined(batches: list[Batch]) -> Batch:
    parts = [tensors(batch) for batch in batches]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Batch(**{"keep_BK": None, **whole})


def test_shapes_types_and_ranges(make_config):
    batch = TrainStream(make_config(train={"batch_images": 64, **MASKED})).batch(0)
    assert batch.index_B.tolist() == list(range(64))
    assert batch.pixels_BCHW.shape == batch.noise_BCHW.shape == (64, 3, 32, 32)
    assert batch.pixels_BCHW.dtype == batch.noise_BCHW.dtype == batch.time_B.dtype == torch.float32
    assert batch.pixels_BCHW.aminmax() == (-1, 1)
    assert batch.caption_BL.shape == (64, 16)
    assert batch.caption_BL.dtype == batch.keep_BK.dtype == batch.index_B.dtype == torch.int64
    assert 0 < batch.time_B.min() < batch.time_B.max() < 1
    assert batch.keep_BK.shape == (64, 32)


def test_pixels_and_captions_are_those_of_the_scenes(make_config):
    batch = TrainStream(make_config(train={"caption_dropout": 0.0}, data={"seed": 4})).batch(96)
    scenes = draw_scenes(4, range(96, 128), "train")
    assert torch.equal(batch.pixels_BCHW, torch.from_numpy(render_scenes(scenes)))
    assert batch.caption_BL.tolist() == [tokenize(describe(scene)) for scene in scenes]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_are_the_global_batch(make_config, world):
    config = make_config(train={"batch_images": 32, **MASKED})
    shares = [TrainStream(config, rank, world).batch(64) for rank in range(world)]
    assert_same(joined(shares), TrainStream(config).batch(64))


def test_images_do_not_depend_on_the_batch_size(make_config):
    small = TrainStream(make_config(train={"batch_images": 8, **MASKED}))
    large = TrainStream(make_config(train={"batch_images": 32, **MASKED}))
    assert_same(joined([small.batch(start) for start in range(64, 96, 8)]), large.batch(64))


def test_iterating_equals_the_batches_and_rounds_the_horizon_up(make_config):
    stream = TrainStream(make_config(train={"batch_images": 16, "images": 90, **MASKED}))
    batches = list(stream.iterate(0))
    assert len(batches) == 6
    for number, batch in enumerate(batches):
        assert_same(batch, stream.batch(16 * number))


def test_resuming_continues_as_if_nothing_had_happened(make_config):
    stream = TrainStream(make_config(train={"batch_images": 16, "images": 160, **MASKED}))
    for resumed, straight in zip(stream.iterate(96), islice(stream.iterate(0), 6, None), strict=True):
        assert_same(resumed, straight)


def test_a_finished_run_has_no_batches(make_config):
    assert list(TrainStream(make_config(train={"images": 64})).iterate(64)) == []


def test_leaving_early_ends_the_thread(make_config):
    batches = TrainStream(make_config()).iterate(0)
    next(batches)
    assert any(thread.name.startswith("data") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("data") for thread in threading.enumerate())


def test_run_seeds_share_images_and_differ_in_the_rest(make_config):
    one, two = (TrainStream(make_config(seed=seed, train=MASKED)).batch(0) for seed in (1, 2))
    assert torch.equal(one.pixels_BCHW, two.pixels_BCHW)
    for name in ("noise_BCHW", "time_B", "keep_BK", "caption_BL"):
        assert not torch.equal(getattr(one, name), getattr(two, name)), name


def test_captions_are_dropped_at_their_rate(make_config):
    null = torch.tensor(tokenize(""))
    stream = TrainStream(make_config(train={"batch_images": 2000, "caption_dropout": 0.1}))
    dropped = (stream.batch(0).caption_BL == null).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.03)
    always = TrainStream(make_config(train={"caption_dropout": 1.0})).batch(0)
    assert (always.caption_BL == null).all()


def test_captions_stay_inside_the_vocabulary(make_config):
    ids = TrainStream(make_config(train={"batch_images": 500})).batch(0).caption_BL
    assert ids.min() == 0
    assert ids.max() == len(VOCABULARY) - 1


def test_times_are_logit_normal(make_config):
    config = make_config(train={"batch_images": 2000}, flow={"time_mean": -0.5, "time_std": 1.5})
    logit = torch.logit(TrainStream(config).batch(0).time_B.double()).numpy()
    assert kstest(logit, norm(-0.5, 1.5).cdf).pvalue > 1e-3


def test_times_stay_inside_however_wide(make_config):
    time = TrainStream(make_config(train={"batch_images": 500}, flow={"time_std": 50.0})).batch(0).time_B
    assert 0 < time.min() < time.max() < 1


def test_kept_tokens_are_sorted_subsets_and_every_token_is_as_likely(make_config):
    keep = TrainStream(make_config(train={"batch_images": 2000, "mask_ratio": 0.75})).batch(0).keep_BK
    assert keep.shape == (2000, 16)
    assert (keep.diff(dim=1) > 0).all()
    counts = torch.bincount(keep.flatten(), minlength=64)
    assert counts.min() > 400
    assert counts.max() < 600


def test_without_masking_there_is_no_mask(make_config):
    assert TrainStream(make_config()).batch(0).keep_BK is None


def test_validation_depends_on_neither_the_runs_seed_nor_its_training(make_config):
    plain = make_config()
    other = make_config(seed=9, train={**MASKED, "batch_images": 8}, flow={"time_mean": 2.0})
    for batches in (validation_set, same_time_batches):
        for a, b in zip(batches(plain), batches(other), strict=True):
            assert_same(a, b)
    moved = validation_set(make_config(data={"seed": 1}))
    for name in ("pixels_BCHW", "noise_BCHW", "time_B"):
        assert not torch.equal(getattr(moved[0], name), getattr(validation_set(plain)[0], name)), name


def test_validation_is_whole_captioned_and_unmasked(make_config):
    batches = validation_set(make_config(train={**MASKED, "caption_dropout": 1.0}, eval={"images": 40}))
    whole = joined(batches)
    assert [len(batch.index_B) for batch in batches] == [32, 8]
    assert whole.index_B.tolist() == list(range(40))
    assert whole.caption_BL.tolist() == [tokenize(describe(s)) for s in draw_scenes(0, range(40), "validation")]
    assert all(batch.keep_BK is None for batch in batches)


def test_validation_noise_is_not_the_training_noise(make_config):
    config = make_config(seed=0, data={"seed": 0})
    assert not torch.equal(validation_set(config)[0].noise_BCHW, TrainStream(config).batch(0).noise_BCHW)


@pytest.mark.parametrize("batch_images", [8, 24, 32])
def test_every_validation_batch_holds_all_ranges_of_t(make_config, batch_images):
    config = make_config(eval={"images": 240 // batch_images * batch_images, "batch_images": batch_images})
    for batch in validation_set(config):
        quantile = torch.special.ndtr(torch.logit(batch.time_B.double())).sort().values
        gaps = torch.cat([quantile[:1], quantile.diff(), 1 - quantile[-1:]])
        assert gaps.max() < 4 / batch_images


def test_validation_times_follow_the_distribution_closely(make_config):
    time = joined(validation_set(make_config())).time_B
    quantile = torch.special.ndtr(torch.logit(time.double())).sort().values
    even = (torch.arange(512) + 0.5) / 512
    assert (quantile - even).abs().max() < 2 / 512


def test_triples_do_not_depend_on_the_sizes(make_config):
    long = joined(validation_set(make_config(eval={"images": 96, "batch_images": 32})))
    short = joined(validation_set(make_config(eval={"images": 48, "batch_images": 16})))
    for name, tensor in tensors(short).items():
        assert torch.equal(tensor, tensors(long)[name][:48]), name


def test_same_time_batches_have_one_t_each_spread_evenly(make_config):
    config = make_config(eval={"images": 256, "batch_images": 32})
    batches = same_time_batches(config)
    quantiles = [torch.special.ndtr(torch.logit(batch.time_B.double())) for batch in batches]
    for place, quantile in enumerate(quantiles):
        assert quantile.tolist() == pytest.approx([(place + 0.5) / 8] * 32, abs=1e-6)
    for same, mixed in zip(batches, validation_set(config), strict=True):
        for name in ("index_B", "pixels_BCHW", "caption_BL", "noise_BCHW"):
            assert torch.equal(getattr(same, name), getattr(mixed, name)), name
