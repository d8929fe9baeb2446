"""Representation alignment: tokens inside the network are drawn towards features of the clean image (REPA).

Yu et al. (arXiv 2410.06940) found that diffusion transformers learn faster where the tokens of an early block, through
a network of three layers, are made similar to features of a trained vision network. `experiments/config/repa.py` says
which features those are here. The loss is one minus the mean cosine over tokens; the paper's is minus the mean.

Legend: B images, C channels, H, W sides, K kept tokens, D width, F features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.config.repa import projector_sizes
from experiments.config.schema import RunConfig
from experiments.data.scenes.features import feature_map
from experiments.models.embed import gather_tokens


class TokenProjector(nn.Module):
    """Maps tokens [B, K, D] to features [B, K, F]: three linear layers with SiLU between them."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        linears = (nn.Linear(inputs, outputs) for _, inputs, outputs in projector_sizes(config))
        self.w_in, self.w_mid, self.w_out = linears
        for linear in (self.w_in, self.w_mid, self.w_out):
            nn.init.zeros_(linear.bias)

    def forward(self, tokens_BKD: Tensor) -> Tensor:
        """Returns the features of each token."""
        hidden = F.silu(self.w_mid(F.silu(self.w_in(tokens_BKD))))
        features_BKF: Tensor = self.w_out(hidden)
        return features_BKF


def misalignment(aligned_BKF: Tensor, images_BCHW: Tensor, token_side: int, keep_BK: Tensor | None) -> Tensor:
    """Returns one minus the mean cosine between tokens and the features of the clean images at their places.

    The features are interpolated to the grid of `token_side` tokens a side where their own is another. Returns a
    float32 scalar.
    """
    features_BFHW = feature_map(images_BCHW)
    if features_BFHW.shape[-1] != token_side:
        size = (token_side, token_side)
        features_BFHW = F.interpolate(features_BFHW, size, mode="bilinear", antialias=True, align_corners=False)
    target_BKF = features_BFHW.flatten(2).transpose(1, 2)
    if keep_BK is not None:
        target_BKF = gather_tokens(target_BKF, keep_BK)
    return 1 - F.cosine_similarity(aligned_BKF.float(), target_BKF, dim=-1).mean()
