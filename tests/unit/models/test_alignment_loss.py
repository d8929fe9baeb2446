"""REPA: tokens of one block are compared with features of the clean image, in training only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from experiments.config.activations import activations
from experiments.config.budget import budget
from experiments.config.overrides import load_config
from experiments.config.repa import aligned_layer
from experiments.config.schema import RunConfig
from experiments.config.tensors import tensor_sizes
from experiments.data.loader import Batch, TrainStream
from experiments.data.scenes.features import feature_map
from experiments.errors import ConfigError
from experiments.models.alignment_loss import misalignment
from experiments.models.dit import DiT
from experiments.models.parts import assert_matches_budget
from experiments.training.objective import forward_loss
from tests.unit.models.counted_flops import BATCH_IMAGES, counted

Awake = Callable[[RunConfig], DiT]
SMALL = ("model=nano", "routing=dense", f"train.batch_images={BATCH_IMAGES}", "eval.images=2", "eval.batch_images=2")
SETTINGS: list[list[str]] = [
    [],
    ["data.image_size=16", "model.patch_size=1"],
    ["train.mask_ratio=0.5"],
    ["routing=expert_choice", "train.repa_layer=4"],
]


def of(*overrides: str, weight: float = 0.5) -> RunConfig:
    return load_config([*SMALL, *overrides, f"train.repa_weight={weight}"])


def first_batch(config: RunConfig) -> Batch:
    return next(TrainStream(config, 0, 1).iterate(0))


def side_of(config: RunConfig) -> int:
    return config.data.image_size // config.model.patch_size


@pytest.mark.parametrize("overrides", SETTINGS, ids=str)
def test_parameters_and_flops_are_those_that_were_computed(overrides: list[str]) -> None:
    config = of(*overrides)
    plain = load_config([*SMALL, *(each for each in overrides if "repa" not in each)])
    model = DiT(config)
    assert_matches_budget(model, budget(config))
    assert [(size.name, size.elements) for size in tensor_sizes(config)] == [
        (name, parameter.numel()) for name, parameter in model.named_parameters()
    ]
    batch = first_batch(config)
    with_repa, _ = counted(model, config, batch, train=True)
    without, _ = counted(DiT(plain), plain, batch, train=True)
    more = budget(config).train_flops_per_image - budget(plain).train_flops_per_image
    assert with_repa - without == BATCH_IMAGES * more > 0
    assert budget(config).flops_per_image == budget(plain).flops_per_image


def test_the_loss_is_zero_for_the_features_themselves_and_two_for_their_opposite() -> None:
    config = of()
    batch = first_batch(config)
    features_BKF = feature_map(batch.pixels_BCHW).flatten(2).transpose(1, 2)
    assert side_of(config) ** 2 == features_BKF.shape[1]
    assert misalignment(3 * features_BKF, batch.pixels_BCHW, side_of(config), None).item() == pytest.approx(0, abs=1e-5)
    assert misalignment(-features_BKF, batch.pixels_BCHW, side_of(config), None).item() == pytest.approx(2, abs=1e-5)


def test_kept_tokens_are_compared_with_the_features_of_their_own_places() -> None:
    config = of("train.mask_ratio=0.5")
    batch = first_batch(config)
    assert batch.keep_BK is not None
    whole_BKF = feature_map(batch.pixels_BCHW).flatten(2).transpose(1, 2)
    kept_BKF = torch.stack([image[keep] for image, keep in zip(whole_BKF, batch.keep_BK, strict=True)])
    apart = misalignment(kept_BKF, batch.pixels_BCHW, side_of(config), batch.keep_BK)
    assert apart.item() == pytest.approx(0, abs=1e-5)


def gradients(model: DiT, config: RunConfig, batch: Batch) -> dict[str, Tensor | None]:
    loss_B, output = forward_loss(model, batch, config)
    (loss_B.mean() + output.auxiliary_loss).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_it_teaches_the_blocks_up_to_its_own_and_adds_its_weight_times_the_loss(awake: Awake) -> None:
    config = of("train.repa_layer=2", weight=0.25)
    assert aligned_layer(config) == 1
    batch, model = first_batch(config), awake(config)
    _, output = forward_loss(model, batch, config)
    assert output.aligned_BKF is not None
    apart = misalignment(output.aligned_BKF, batch.pixels_BCHW, side_of(config), None)
    assert_close(output.auxiliary_loss, 0.25 * apart)
    output.auxiliary_loss.backward()
    taught = {name.split(".")[1] for name, p in model.named_parameters() if "blocks" in name and p.grad is not None}
    assert {layer for layer in taught if layer in "01"} == {"0", "1"}
    late = [p.grad for name, p in model.named_parameters() if name.startswith(("blocks.2.", "blocks.3.", "head."))]
    assert all(gradient is None or not gradient.any() for gradient in late)
    own = [p.grad for name, p in model.named_parameters() if name.startswith("repa.")]
    assert len(own) == 6
    assert all(gradient is not None and gradient.any() for gradient in own)


def test_evaluation_neither_computes_nor_adds_it(awake: Awake) -> None:
    config = of()
    model = awake(config).eval()
    _, output = forward_loss(model, first_batch(config), config)
    assert output.aligned_BKF is None
    assert output.auxiliary_loss.item() == 0


def test_checkpointed_training_has_the_same_gradients(awake: Awake) -> None:
    config = of("routing=expert_choice")
    model, again = awake(config), awake(config)
    again.checkpointed = True
    batch = first_batch(config)
    expected = gradients(model, config, batch)
    for name, gradient in gradients(again, config, batch).items():
        assert gradient is not None, name
        assert_close(gradient, expected[name], msg=name)


def test_memory_grows_by_what_the_small_network_saves() -> None:
    config, plain = of(), load_config(SMALL)
    more = activations(config, 4, False).saved - activations(plain, 4, False).saved
    batch, model, saved = first_batch(config), DiT(config), {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    assert model.repa is not None
    tokens_BKD = torch.randn(BATCH_IMAGES, config.num_tokens, config.model.width, requires_grad=True)
    not_its_own = {tensor.untyped_storage().data_ptr() for tensor in (*model.repa.parameters(), tokens_BKD)}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        misalignment(model.repa(tokens_BKD), batch.pixels_BCHW, side_of(config), None)
    measured = sum(each.untyped_storage().nbytes() for key, each in saved.items() if key not in not_its_own)
    assert more * BATCH_IMAGES == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.repa_layer=2"], r"train\.repa_layer=2 has no meaning without alignment\. Use train\.repa_weight=0\.5"),
        (
            ["train.repa_weight=0.5", "train.repa_layer=9"],
            r"train\.repa_layer=9 is not a block of the model, which has",
        ),
        (["train.repa_weight=-1"], r"train\.repa_weight"),
        (["train.repa_weight=0.5", "data.name=imagenet", "model.block=dit"], r"does not fit data\.name=imagenet"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_config(["model=nano", *overrides])


def test_the_config_of_a_run_without_it_is_as_before() -> None:
    assert "repa_weight" not in load_config(SMALL).model_dump()["train"]
    assert budget(load_config(SMALL)).params_by_part["repa"] == 0
