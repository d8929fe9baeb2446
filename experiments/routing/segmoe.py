"""SegMoE's router: the batch as a whole chooses k experts, which serve every one of its tokens.

There is no paper; the rule is that of the public code (segmind/segmoe at 5fce953, `segmoe/main.py`). The scores of all
tokens of the batch are summed, the k experts with the largest sums are chosen for everybody, and each token weighs
their results by the softmax over its own k scores:

    chosen = top-k_e sum_n s_ne,    g_n = softmax over the chosen e of s_ne

The choice therefore depends on who else is in the batch: another image beside it can change an image, and so can the
null caption of guidance, which is half of the batch. This is how SegMoE works, and a test holds it. With
`routing.group_images=1` every image chooses for itself. Nothing is trained: `ecdit merge` takes experts and router from
finished runs (`evaluation/exchange/merged_run.py`).

Legend: as in `contract.py`, with K chosen experts.
"""

from __future__ import annotations

from torch import Tensor

from experiments.routing.top_k import TopKRouter


class SegMoERouter(TopKRouter):
    """The router of SegMoE: it ranks experts once for all tokens of a group, where DiT-MoE's ranks them by token."""

    def _ranked(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the same K experts for every token of a group [..., S, E], and the gates of each token."""
        chosen = logits.sum(dim=-2, keepdim=True).topk(self.top_k, dim=-1).indices
        choice = chosen.expand(*logits.shape[:-1], -1)
        return choice, logits.gather(-1, choice).softmax(dim=-1)
