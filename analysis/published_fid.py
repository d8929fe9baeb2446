"""Published FID of diffusion mixtures of experts, to be read beside our own numbers and never on one axis with them.

The values are those that papers print, each with its source and backbone. They depend on both, on the number of
training steps and on the guidance scale, so only values of one source and one backbone may be compared. Papers disagree
even on one model: DiffMoE L-E16 has 14.41 in its own paper and 11.16 as the authors of DSMoE made it again. Our runs
are smaller and of other data, so that no number here can be set against a Frechet distance of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from analysis.columns import Column


class PublishedFid(NamedTuple):
    """One published FID; `router` is the name in `routing.name`, or None where we have no such router.

    `active` and `total` are parameters as the paper writes them, and None where our source does not give them.
    """

    model: str
    router: str | None
    fid: float
    guidance: float | None
    steps: str | None
    source: str
    backbone: str
    active: str | None = None
    total: str | None = None
    is_main: bool = False
    """Says whether it belongs to the table of large models at 700K steps without guidance, which a terminal shows."""


DIFFMOE = "DiffMoE (arXiv 2503.14487)"
DSMOE = "DSMoE (arXiv 2512.01252)"
SWITCH_DIT = "Switch-DiT (arXiv 2403.09176)"
EXPERT_RACE = "Expert Race (arXiv 2503.16057)"
PROMOE = "ProMoE (arXiv 2510.24711)"
DIT = "DiT"
ROPE = "DiT with RoPE and SwiGLU"
JIT = "JiT, pixels"
SMALL = "DiT, small models"

DISAGREEMENT = (
    "DiffMoE L-E16 has FID 14.41 in its own paper and 11.16 as made again by the authors of DSMoE: two papers disagree "
    "by 3 FID on one model, so compare only within one source and backbone."
)
CONDITIONS = (
    "FID as the papers print it; the models of 700K steps are of ImageNet at 256 pixels, with 50,000 images. No number "
    "is of the runs compared here, and none may be set against a Frechet distance of theirs."
)


# fmt: off
def _main(
    model: str, router: str, fid: float, active: str | None, total: str | None, source: str = DIFFMOE,
    backbone: str = DIT,
) -> PublishedFid:
    return PublishedFid(model, router, fid, 1.0, "700K", source, backbone, active, total, is_main=True)


def _guided(
    model: str, router: str | None, fid: float, guided: float, steps: str, source: str, backbone: str,
    active: str | None = None, total: str | None = None,
) -> tuple[PublishedFid, PublishedFid]:
    """Returns the two values of a model that was measured without guidance and with a scale of 1.5."""
    about = (steps, source, backbone, active, total)
    return PublishedFid(model, router, fid, 1.0, *about), PublishedFid(model, router, guided, 1.5, *about)


def _switch_dit(size: str, dense: float, dtr: float, switch: float) -> tuple[PublishedFid, ...]:
    models = ((f"Switch-DiT {size}", "switch_dit", switch), (f"DiT {size}", "dense", dense), (f"DTR {size}", None, dtr))
    return tuple(PublishedFid(name, router, fid, 1.5, "400K", SWITCH_DIT, DIT) for name, router, fid in models)


def _race(what: str, *fids: float) -> tuple[PublishedFid, ...]:
    """Returns the values of token choice, expert choice and Expert Race in the table of small models."""
    models = (("token choice", "token_choice"), ("expert choice", "expert_choice"), ("Expert Race", "expert_race"))
    return tuple(
        PublishedFid(f"{name}, {what}", router, fid, None, None, EXPERT_RACE, SMALL)
        for (name, router), fid in zip(models, fids, strict=True)
    )


PUBLISHED: tuple[PublishedFid, ...] = (
    _main("dense L", "dense", 17.01, "458M", "458M"),
    _main("token choice L-E16", "token_choice", 19.06, "458M", "1.98B"),
    _main("EC-DIT L-E16, made again, per image", "expert_choice", 16.12, "458M", "1.98B"),
    _main("DiffMoE L-E16, fixed capacity 1, no predictor", "diffmoe", 15.25, "454M+", "1.98B"),
    _main("DiffMoE L-E16, predictor", "diffmoe", 14.41, "454M", "1.98B"),
    _main("DiffMoE L-E16, made again by DSMoE's authors", "diffmoe", 11.16, None, None, DSMOE, "not stated"),
    _main("DSMoE L-E16", "dsmoe", 9.80, None, None, DSMOE, ROPE),
    _main("DSMoE L-E48", "dsmoe", 9.19, None, None, DSMOE, ROPE),
    _main("dense XL", "dense", 14.77, "675M", "675M"),
    *_switch_dit("S", 44.28, 37.43, 33.99),
    *_switch_dit("B", 27.96, 16.58, 16.21),
    *_switch_dit("L", 12.59, 8.90, 8.78),
    *_switch_dit("XL", 9.40, 10.85, 8.76),
    *_race("softmax", 17.28, 16.71, 16.47),
    *_race("sigmoid", 15.25, 15.73, 13.85),
    *_race("identity", 15.98, 15.70, 13.66),
    PublishedFid("Expert Race 4 of 32, no balance loss", "expert_race", 11.38, None, None, EXPERT_RACE, SMALL),
    PublishedFid("Expert Race 4 of 32, balance loss", "expert_race", 11.67, None, None, EXPERT_RACE, SMALL),
    PublishedFid("Expert Race 4 of 32, router similarity", "expert_race", 10.77, None, None, EXPERT_RACE, SMALL),
    *_guided("dense B", "dense", 30.61, 9.02, "500K", PROMOE, DIT),
    *_guided("ProMoE B", "promoe", 24.44, 6.39, "500K", PROMOE, DIT, "130M", "300M"),
    *_guided("dense L", "dense", 15.44, 3.56, "500K", PROMOE, DIT),
    *_guided("ProMoE L", "promoe", 11.61, 2.79, "500K", PROMOE, DIT, "458M", "1.06B"),
    *_guided("dense XL", "dense", 13.38, 3.23, "500K", PROMOE, DIT),
    *_guided("ProMoE XL", "promoe", 9.44, 2.59, "500K", PROMOE, DIT, "675M", "1.57B"),
    PublishedFid("DiT-MoE B", "shared_expert", 8.94, 1.5, "500K", PROMOE, DIT),
    PublishedFid("DiffMoE B", "diffmoe", 8.22, 1.5, "500K", PROMOE, DIT),
    PublishedFid("ProMoE B, guided by k-means", "promoe", 6.24, 1.5, "500K", PROMOE, DIT),
    PublishedFid("ProMoE B, guided by class", "promoe", 5.91, 1.5, "500K", PROMOE, DIT),
    *_guided("DiffMoE S-E16, made again", "diffmoe", 41.02, 15.47, "700K", DSMOE, "not stated"),
    *_guided("DSMoE S-E16", "dsmoe", 39.84, 14.53, "700K", DSMOE, ROPE),
    *_guided("DSMoE S-E48", "dsmoe", 40.20, 14.81, "700K", DSMOE, ROPE),
    *_guided("DiffMoE B-E16, made again", "diffmoe", 20.83, 4.87, "700K", DSMOE, "not stated"),
    *_guided("DSMoE B-E16", "dsmoe", 20.33, 4.50, "700K", DSMOE, ROPE),
    *_guided("DSMoE B-E48", "dsmoe", 19.46, 4.27, "700K", DSMOE, ROPE),
    PublishedFid("DiffMoE L-E16, made again", "diffmoe", 2.84, 1.5, "700K", DSMOE, "not stated"),
    PublishedFid("DSMoE L-E16", "dsmoe", 2.59, 1.5, "700K", DSMOE, ROPE),
    PublishedFid("DSMoE L-E48", "dsmoe", 2.55, 1.5, "700K", DSMOE, ROPE),
    *_guided("DSMoE 3B-E16", "dsmoe", 7.52, 2.38, "700K", DSMOE, ROPE, "965M", "3B"),
    PublishedFid("JiT B/16, dense", "dense", 4.81, None, None, DSMOE, JIT),
    PublishedFid("JiT B/16, experts of DSMoE", "dsmoe", 4.23, None, None, DSMOE, JIT),
    PublishedFid("JiT L, dense", "dense", 3.19, None, None, DSMOE, JIT),
    PublishedFid("JiT L, experts of DSMoE", "dsmoe", 3.10, None, None, DSMOE, JIT),
)
# fmt: on
COLUMNS = (
    Column("model", "Model"),
    Column("active", "Activated", priority=3),
    Column("total", "Total", priority=3),
    Column("fid", "FID", "{:.2f}".format),
    Column("guidance", "Guidance", "{:g}".format, priority=2),
    Column("steps", "Steps", priority=2),
    Column("backbone", "Backbone", priority=1),
    Column("source", "Source"),
)


def published_rows(routers: Iterable[str] | None = None, main_only: bool = False) -> list[dict[str, object]]:
    """Returns the published values as rows for tables and JSON: of `routers`, or of all where it is None."""
    wanted = None if routers is None else set(routers)
    return [
        {key: value for key, value in each._asdict().items() if key != "is_main"}
        for each in PUBLISHED
        if (wanted is None or each.router in wanted) and (each.is_main or not main_only)
    ]
