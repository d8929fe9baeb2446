"""Says what representation alignment (REPA, arXiv 2410.06940) adds to a model and to its training, without torch.

With `train.repa_weight` the tokens after one block pass through a small network, and the loss compares the result with
features of the clean image, by a network that is not trained. Here that network is the shipped one of the drawn scenes
(`experiments/data/scenes/features.py`), whose third convolution has 64 features at each of 8 x 8 places. The small
network exists in training only; sampling does not compute it.

Legend: d width, T tokens that training keeps.
"""

from __future__ import annotations

from experiments.config.block_sizes import linear_sizes
from experiments.config.data_sets import DATA_SETS, data_set_of
from experiments.config.schema import RunConfig
from experiments.errors import ConfigError

FEATURES = 64
"""The features of one place."""
FEATURE_CHANNELS = (3, 24, 48, FEATURES)
"""The channels between the convolutions, 3 x 3 each; all but the first halve the sides."""
FEATURE_IMAGE_SIZE = 32
HIDDEN_FACTOR = 2
"""The hidden width of the small network over d. The paper has 2,048 beside widths of 384 to 1,152."""


def aligned_layer(config: RunConfig) -> int | None:
    """Returns the block after which tokens are compared, None without alignment.

    By default it lies at two sevenths of the depth, as the eighth of 28 blocks in the paper.
    """
    if not config.train.repa_weight:
        return None
    default = max(1, round(config.model.num_layers * 8 / 28))
    return (config.train.repa_layer or default) - 1


def projector_sizes(config: RunConfig) -> list[tuple[str, int, int]]:
    """Returns name, inputs and outputs of the linear layers of the small network; none without alignment."""
    if not config.train.repa_weight:
        return []
    d, hidden = config.model.width, HIDDEN_FACTOR * config.model.width
    return [("repa.w_in", d, hidden), ("repa.w_mid", hidden, hidden), ("repa.w_out", hidden, FEATURES)]


def projector_params(config: RunConfig) -> int:
    """Returns the number of parameters of the small network."""
    return sum(size for sizes in projector_sizes(config) for _, size in linear_sizes(*sizes))


def projector_flops(config: RunConfig) -> int:
    """Returns the FLOPs of a forward pass of the small network for one image."""
    return sum(2 * config.num_train_tokens * inputs * outputs for _, inputs, outputs in projector_sizes(config))


def feature_flops(config: RunConfig) -> int:
    """Returns the FLOPs of the features of one clean image, which have no backward pass."""
    if not config.train.repa_weight:
        return 0
    sides = (FEATURE_IMAGE_SIZE >> layer for layer in range(len(FEATURE_CHANNELS) - 1))
    pairs = zip(FEATURE_CHANNELS, FEATURE_CHANNELS[1:], sides, strict=False)
    return sum(2 * 9 * inputs * outputs * side**2 for inputs, outputs, side in pairs)


def projector_numbers(config: RunConfig) -> int:
    """Returns how many numbers autograd saves of the small network for one image.

    Those are the inputs of its layers, and of the two activation functions between them; its output is saved in fp32
    for the comparison, and counted by the caller.
    """
    return config.num_train_tokens * sum(2 * outputs for _, _, outputs in projector_sizes(config)[:-1])


def has_auxiliary_losses(config: RunConfig) -> bool:
    """Says whether training adds another loss to that of the images: of the routers, or of REPA."""
    fields = type(config.routing).model_fields
    weights = [getattr(config.routing, name) for name in fields if name.endswith("_loss_weight")]
    return any(weight > 0 for weight in (*weights, config.train.repa_weight))


def check_repa(config: RunConfig) -> None:
    """Raises `ConfigError` for settings of alignment that do not fit each other, the model or the data."""
    weight, layer, depth = config.train.repa_weight, config.train.repa_layer, config.model.num_layers
    if layer is not None and not weight:
        raise ConfigError(
            f"train.repa_layer={layer} has no meaning without alignment.",
            "Use train.repa_weight=0.5, or leave out train.repa_layer.",
        )
    if layer is not None and layer > depth:
        raise ConfigError(
            f"train.repa_layer={layer} is not a block of the model, which has {depth}.",
            f"Use train.repa_layer={depth} or less.",
        )
    if weight and not data_set_of(config).has_scenes:
        drawn = " or ".join(name for name, row in DATA_SETS.items() if row.has_scenes)
        raise ConfigError(
            f"train.repa_weight={weight:g} does not fit data.name={config.data.name}: the features that tokens are "
            "compared with are those of the drawn scenes.",
            f"Use train.repa_weight=0, or data.name={drawn}.",
        )
